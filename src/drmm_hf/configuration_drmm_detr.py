"""Configuration of D-RMM on a detector of transformers: the detector's own and the fields of the mixture."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_drmm import DetectorConfig


@strict
class DrmmDetrConfig(DetectorConfig):
    """Configuration of [`DrmmDetrForObjectDetection`].

    Class names (`id2label`, `label2id`, `num_labels`) are those of the detector.

    Attributes:
        detector_config: the stock detector's configuration, or its values as a dict with `model_type`.
        objective: "nll_mcm" (Eq. 5 and 7), "nll", or "native": the detector's own loss, with its matching.
        mcm_weight: beta, the weight of MCM.
        objectness_anchor: "poisson" gives the scores their level: their sum is the expected number of objects. "none"
            leaves it where the checkpoint had it, since the likelihood is blind to a common factor of all scores.
        encoder_stage: whether the proposals of the encoder are a mixture, too, where the detector has them. Without it
            nothing teaches them what the decoder starts from.
        initial_scale_ratio: gamma before training, as a share of the predicted box's width or height.
        density, student_t_dof, min_scale_ratio, likelihood_floor, class_weight, stop_gradient, loss_reduction: as in
            [`DrmmConfig`].
    """

    model_type = "drmm_detr"
    keys_to_ignore_at_inference = ["last_hidden_state", "locations", "scales", "pred_scales"]  # noqa: RUF012
    sub_configs = {"detector_config": AutoConfig}  # noqa: RUF012

    detector_config: dict | PreTrainedConfig | None = None
    objective: Literal["nll_mcm", "nll", "native"] = "nll_mcm"
    mcm_weight: float | int = 0.5
    objectness_anchor: Literal["none", "poisson"] = "poisson"
    encoder_stage: bool = True
    initial_scale_ratio: float | int = 0.1
    density: Literal["cauchy", "gaussian", "student_t"] = "cauchy"
    student_t_dof: float | int = 1.0
    min_scale_ratio: float | int = 0.04
    likelihood_floor: float | int = 1e-12
    class_weight: float | int = 1.0
    stop_gradient: list[str] | tuple[str, ...] = ("location",)
    loss_reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self, **kwargs: Any) -> None:
        detector = self.detector_config
        if detector is None:
            detector = {"model_type": "rt_detr_v2"}
        if isinstance(detector, dict):
            if detector.get("model_type") not in [*CONFIG_MAPPING]:
                raise ValueError(
                    f"DrmmDetrConfig.detector_config has model_type {detector.get('model_type')!r}; give the "
                    "configuration of a detector of transformers, such as 'rt_detr_v2'."
                )
            detector = CONFIG_MAPPING[detector["model_type"]].from_dict(detector)
        self.detector_config = detector
        if kwargs.get("num_labels") is not None:
            detector.num_labels = kwargs.pop("num_labels")
        self.id2label = self.id2label or detector.id2label
        super().__post_init__(**kwargs)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        detector = self.__dict__.get("detector_config")
        if key == "id2label" and value is not None and isinstance(detector, PreTrainedConfig):
            detector.id2label, detector.label2id = self.id2label, self.label2id

    @property
    def num_proposals(self) -> int:
        """Number of queries of the detector, of one group."""
        detector: Any = self.detector_config
        return detector.num_queries

    @property
    def num_stages(self) -> int:
        """Number of layers of the detector's decoder."""
        detector: Any = self.detector_config
        return detector.decoder_layers

    def validate_architecture(self) -> None:
        """Refuse values that no model can be trained with. Called by the base class."""
        self.check_fields(DrmmDetrConfig.__annotations__)
