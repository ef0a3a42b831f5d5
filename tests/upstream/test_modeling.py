"""transformers' own tests of every model, run on this one: `make test-upstream`."""

import inspect
import unittest

import transformers_upstream.test_modeling_common as common
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers_upstream.test_configuration_common import ConfigTester
from transformers_upstream.test_modeling_common import ModelTesterMixin

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmModel
from model_fixtures import inputs, small_config

# The common tests look up which class has a loss by these tables, where a model of transformers itself stands.
MODEL_MAPPING_NAMES["drmm"] = "DrmmModel"
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["drmm"] = "DrmmForObjectDetection"
# What transformers' helper does to make comparisons of attention stable; it takes the name in config.decoder for a
# configuration.
_STABLE_NORMS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "batch_norm_eps")
common.set_config_for_less_flaky_test = lambda config: [setattr(config, name, 1.0) for name in _STABLE_NORMS]


class DrmmModelTester:
    """A small model and its inputs, by the names that the common tests ask for."""

    batch_size = 2
    is_training = True
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 8
    seq_length = encoder_seq_length = 12  # the queries

    def __init__(self, parent, decoder: str):
        self.parent, self.decoder = parent, decoder

    def get_config(self) -> DrmmConfig:
        # AdaMixer reads every level of the pyramid, without all of which a part of the backbone has no gradient
        levels = [1] if self.decoder == "sparse_rcnn" else [0, 1, 2, 3]
        return small_config(
            decoder=self.decoder,
            pyramid_levels=levels,
            num_sampling_points=8,
            num_mixing_points=8,
            num_attention_heads=self.num_attention_heads,
            backbone_norm="eval",
        )

    def prepare_config_and_inputs_for_common(self):
        batch = inputs(self.batch_size)
        return self.get_config(), {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}


class CommonTests(ModelTesterMixin):
    all_model_classes = (DrmmModel, DrmmForObjectDetection)
    test_resize_embeddings = False
    decoder: str

    def setUp(self) -> None:
        self.model_tester = DrmmModelTester(self, self.decoder)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is DrmmForObjectDetection:
            inputs_dict["labels"] = inputs(self.model_tester.batch_size)["labels"]
        return inputs_dict

    def test_config(self) -> None:
        ConfigTester(self, config_class=DrmmConfig, has_text_modality=False, num_proposals=7).run_common_tests()

    def test_forward_signature(self) -> None:
        for model_class in self.all_model_classes:
            names = list(inspect.signature(model_class.forward).parameters)
            assert names[1:3] == ["pixel_values", "pixel_mask"]

    @unittest.skip("a detector has no token embeddings")
    def test_model_get_set_embeddings(self) -> None: ...


class SparseRcnnTest(CommonTests, unittest.TestCase):
    decoder = "sparse_rcnn"


class AdaMixerTest(CommonTests, unittest.TestCase):
    decoder = "adamixer"
