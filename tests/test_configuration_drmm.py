"""DrmmConfig: defaults, what it refuses, and that files give back what was saved."""

import copy
import math

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, DetrConfig

from drmm_hf import DrmmConfig
from drmm_hf.presets import PRESETS, backbone_statistics, processor_fields
from model_fixtures import small_config


def reload(config, folder):
    config.save_pretrained(folder)
    return DrmmConfig.from_pretrained(folder)


def test_defaults_are_the_paper_on_resnet50_with_cocos_classes():
    config = DrmmConfig()
    assert (config.num_proposals, config.num_stages, config.hidden_size, config.num_labels) == (300, 6, 256, 80)
    assert (config.objective, config.density, config.mcm_weight) == ("nll_mcm", "cauchy", 0.5)
    assert (config.min_scale_ratio, config.likelihood_floor, config.loss_reduction) == (0.04, 1e-12, "sum")
    assert (config.proposal_init, config.frozen_stages, config.backbone_norm) == ("grid", 1, "eval")
    backbone = config.backbone_config
    assert (backbone.model_type, backbone.backbone, list(backbone.out_indices)) == (
        "timm_backbone",
        "resnet50.tv_in1k",
        [1, 2, 3, 4],
    )


SWIN = {"model_type": "timm_backbone", "backbone": "swin_tiny_patch4_window7_224", "out_indices": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    "fields",
    [
        *({"num_labels": count} for count in (1, 2, 3, 80)),  # two is transformers' own default, left out of its files
        {"id2label": {0: "LABEL_0", 1: "LABEL_1"}},
        {"backbone_config": SWIN, "backbone_kwargs": {"strict_img_size": False, "depths": [1, 1, 1, 1]}},
        {"pyramid_levels": [1, 2], "stop_gradient": ["location", "class"], "top_k_ratio": 0.7},
        {"backbone_config": {"model_type": "resnet", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}},
        {"my_note": "run 7"},  # unknown fields are kept, as transformers does
    ],
)
def test_a_configuration_survives_saving(tmp_path, fields):
    config = DrmmConfig(**fields)
    loaded = reload(config, tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(loaded.backbone_config) is type(config.backbone_config)
    assert loaded.num_labels == fields.get("num_labels", len(fields.get("id2label", range(80))))
    assert getattr(loaded, "my_note", None) == fields.get("my_note")
    for name, value in fields.get("backbone_config", {}).items():
        found = getattr(loaded.backbone_config, name)
        assert (list(found) if isinstance(found, tuple) else found) == value


def test_label2id_follows_id2label(tmp_path):
    config = DrmmConfig(id2label={1: "box", 0: "disc"})
    assert config.label2id == {"disc": 0, "box": 1}
    config.save_pretrained(tmp_path)
    loaded = DrmmConfig.from_pretrained(tmp_path, id2label={"0": "cat", "1": "dog", "2": "cow"})
    assert loaded.id2label == {0: "cat", 1: "dog", 2: "cow"}
    assert loaded.label2id == {"cat": 0, "dog": 1, "cow": 2}


def test_auto_config_gives_our_class(tmp_path):
    small_config().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DrmmConfig
    assert type(AutoConfig.for_model("drmm", num_labels=4)) is DrmmConfig


def test_auto_map_is_saved_only_with_the_code(tmp_path, monkeypatch):
    config = small_config()
    config.auto_map = {"AutoConfig": "configuration_drmm.DrmmConfig"}
    assert "auto_map" not in config.to_dict()
    assert not hasattr(reload(config, tmp_path), "auto_map")
    monkeypatch.setattr(DrmmConfig, "_auto_class", "AutoConfig")
    assert config.to_dict()["auto_map"] == config.auto_map


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("num_queries", "num_proposals"),
        ("decoder_layers", "num_stages"),
        ("num_hidden_layers", "num_stages"),
        ("d_model", "hidden_size"),
        ("decoder_attention_heads", "num_attention_heads"),
    ],
)
def test_names_of_other_detectors_work_as_aliases(alias, name):
    config = DrmmConfig(**{alias: 8})
    assert getattr(config, name) == getattr(config, alias) == 8
    setattr(config, alias, 16)
    assert getattr(config, name) == 16
    assert alias not in config.to_dict()


BASELINE = {"head": "set_prediction", "objective": "set_prediction"}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        *[
            (name, {name: value})
            for name in ("num_proposals", "roi_size", "box_unit", "student_t_dof")
            for value in (0, -1)
        ],
        *[(name, {name: -1}) for name in ("frozen_stages", "num_class_layers", "mcm_weight", "min_scale_ratio")],
        *[(name, {name: value}) for name in ("likelihood_floor", "top_k_ratio") for value in (-1e-12, 1.5)],
        *[
            (name, {name: value})
            for name in ("likelihood_floor", "mcm_weight", "student_t_dof", "dropout")
            for value in (math.nan, math.inf)
        ],
        *[(name, {name: "none of them"}) for name in ("decoder", "head", "objective", "density", "backbone_norm")],
        *[(name, {name: "none of them"}) for name in ("proposal_init", "loss_reduction", "stop_gradient")],
        *[
            ("id2label", {"id2label": value})
            for value in ({}, {1: "person", 2: "car"}, {0: "a", 2: "b"}, {"x": "a"}, {0: 1})
        ],
        ("num_stages", {"num_stages": "3"}),
        ("num_stages", {"num_stages": 2.5}),
        ("pyramid_levels", {"pyramid_levels": ["1"]}),
        ("stop_gradient", {"stop_gradient": ["boxes"]}),
        ("hidden_size", {"hidden_size": 100}),
        ("hidden_size", {"decoder": "adamixer", "hidden_size": 36, "num_attention_heads": 4}),
        ("backbone", {"backbone": "resnet18"}),  # transformers would look it up on the Hub
        ("backbone_config", {"backbone_config": {"backbone": "resnet18"}}),
        ("backbone_config", {"backbone_config": {"model_type": "nonsense"}}),
        ("backbone_config", {"backbone_config": {"model_type": "resnet", "depths": "many"}}),
        ("objective", {"objective": "set_prediction"}),
        ("objective", {"head": "set_prediction"}),
        ("top_k_ratio", {**BASELINE, "top_k_ratio": 0.7}),
        ("num_query_groups", {"num_query_groups": 12}),
        ("num_target_copies", {"num_target_copies": 2}),
        ("objectness_anchor", {"objective": "nll_bipartite", "objectness_anchor": "poisson"}),
    ],
)
def test_refuses_what_no_model_can_be_built_from(field, fields):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        DrmmConfig(**fields)


def test_types_are_checked_on_assignment_too():
    config = small_config()
    with pytest.raises(StrictDataclassError, match="num_stages"):
        config.num_stages = "many"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_saving_and_are_not_shared(tmp_path, name):
    before = copy.deepcopy(PRESETS[name])
    config = DrmmConfig.from_preset(name, num_labels=5)
    assert reload(config, tmp_path).to_dict() == config.to_dict()
    config.backbone_config.out_indices = [1]
    assert PRESETS[name] == before


def test_preset_fields_can_be_overridden_also_by_alias():
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", hidden_size=32, num_queries=7, num_labels=2)
    assert (config.hidden_size, config.num_proposals, config.num_labels, config.box_unit) == (32, 7, 2, 10.0)


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match="drmm-sparse-rcnn-tiny"):
        DrmmConfig.from_preset("drmm-sparse-tiny")
    with pytest.raises(ValueError, match="num_proposals"):
        DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", num_propsals=7)


def test_a_preset_for_few_steps_differs_in_what_was_measured_and_no_more():
    few, paper = (DrmmConfig.from_preset(f"drmm-{decoder}-lite0").to_dict() for decoder in ("adamixer", "sparse-rcnn"))
    names = ("objectness_anchor", "class_gradient", "min_scale_ratio", "objective")
    assert [few[name] for name in names] == ["poisson", 2.0, 0.04, "nll_mcm"]
    assert [paper[name] for name in names] == ["none", 1.0, 0.04, "nll_mcm"]


def test_the_image_processor_follows_the_backbone():
    assert backbone_statistics(DrmmConfig()) == {}, "ImageNet's, the processor's defaults"
    assert set(processor_fields("drmm-sparse-rcnn-tiny")) == {"size"}
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    for name in ("drmm-sparse-rcnn-lite0", "drmm-adamixer-lite0", "sparse-rcnn-lite0", "adamixer-lite0"):
        assert backbone_statistics(DrmmConfig.from_preset(name)) == half
        assert processor_fields(name) == {**processor_fields("drmm-sparse-rcnn-tiny"), **half}
    assert backbone_statistics(DrmmConfig(backbone_config={"model_type": "resnet"})) == {}


def test_another_models_config_is_refused(tmp_path):
    DetrConfig(d_model=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        DrmmConfig.from_pretrained(tmp_path)


def test_the_field_decoder_is_no_text_model() -> None:
    """transformers looks for the configuration of a text model in a field of this name."""
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny")
    assert config.get_text_config() is config
    assert config.get_text_config(decoder=True) is config
