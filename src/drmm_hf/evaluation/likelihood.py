"""The likelihood of a data set under each stage's mixture, and how far one component alone explains each object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import DetectionDataset, decode_image
from ..loss import MIXTURE_FIELDS
from ..mixture import MixtureParameters, mixture_loss
from ..modeling_drmm import DrmmForObjectDetection
from .matches import Report
from .predict import evaluating, object_records, prepared_batches, to_model
from .uncertainty import density_text


@dataclass(frozen=True)
class StageLikelihood:
    """Means over the objects of a data set; nan without objects."""

    nll: float  # -log p(b, c) (Eq. 5), the density in 1/px⁴ of the network input
    mcm: float  # -log of the share of the largest component in p(b, c) (Eq. 7)
    # That share itself, exp(-MCM), averaged over the objects: 1 where one component explains an object alone, 1/2 where
    # two do so equally, and near 0 where the likelihood is below `likelihood_floor`.
    max_share: float


@dataclass(frozen=True)
class LikelihoodReport(Report):
    """Likelihood of each stage, and the fields of the configuration that it depends on."""

    stages: tuple[StageLikelihood, ...]  # first to last
    num_objects: int  # ground-truth boxes that are no crowd
    num_images: int  # with and without objects
    density: str
    student_t_dof: float
    min_scale_ratio: float
    likelihood_floor: float  # bounds the NLL of an object at -log(likelihood_floor)
    class_weight: float

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the values."""
        density = density_text(self.density, self.student_t_dof)
        return (
            f"{density}, scales at least {self.min_scale_ratio:g} of the box, likelihood floor "
            f"{self.likelihood_floor:g}, class weight {self.class_weight:g}, mixing coefficients times the objects of "
            f"the image; {self.num_objects} objects in {self.num_images} images"
        )


def likelihood_report(
    model: DrmmForObjectDetection, processor: Any, dataset: DetectionDataset, batch_size: int = 8
) -> LikelihoodReport:
    """NLL and exp(-MCM) of every stage, averaged over the objects of a data set (paper, Tables 4 and 9).

    The terms are those of the training loss (Eq. 5 and 7 with the settings of `model.config`), in eval mode and
    whatever mixture objective the model was trained with: per object they sum up to `nll_stage_i` and `mcm_stage_i`.
    exp(-MCM) = max_k g_k / p of the paper is taken of each object, not of the mean.

    NLL is a log density over boxes in pixels of the network input: it compares models of one input size only. Doubling
    the size adds 4 log 2 where γ doubles too.

    Args:
        model: with a mixture head; runs where it is, and gets its modes back.
        processor: its `DrmmImageProcessor`.
        dataset: labels must be those of the model (`load_detection_dataset(..., id2label=model.config.id2label)`).
            Crowd regions and boxes that are empty within their image are no objects.
        batch_size: images in a batch.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read, or the model predicts no density.
    """
    config = model.config
    if config.head != "mixture":
        raise ValueError(f"config.head is {config.head!r}, which predicts no density; give a model with head='mixture'")

    def prepare(rows: Sequence[Mapping[str, Any]]) -> Any:
        annotations = [{"image_id": row["image_id"], "annotations": object_records(row)} for row in rows]
        inputs = processor(images=[decode_image(row) for row in rows], annotations=annotations, return_tensors="pt")
        return inputs, inputs.pop("labels")

    settings: dict[str, Any] = {name: getattr(config, name) for name in MIXTURE_FIELDS}
    sums = torch.zeros(config.num_stages, 3, dtype=torch.float64)
    num_objects = 0

    def add_terms(stages: Sequence[MixtureParameters], targets: Any, *_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        for index, stage in enumerate(stages):
            nll, mcm = mixture_loss(stage, *targets, **settings)
            share = torch.where(targets.mask, torch.exp(-mcm), 0)
            sums[index] += torch.stack([term.double().sum() for term in (nll, mcm, share)]).cpu()
        return sums.sum(), {}

    loss_function, model.loss_function = model.loss_function, add_terms
    try:
        with evaluating(model):
            for _, (inputs, labels) in prepared_batches(dataset.dataset, prepare, batch_size):
                moved = to_model(model, inputs)
                device = moved["pixel_values"].device
                model(**moved, labels=[{name: one.to(device) for name, one in label.items()} for label in labels])
                num_objects += sum(len(label["class_labels"]) for label in labels)
    finally:
        model.loss_function = loss_function
    return LikelihoodReport(
        stages=tuple(StageLikelihood(*row) for row in (sums / (num_objects or torch.nan)).tolist()),
        num_objects=num_objects,
        num_images=len(dataset),
        **{**settings, "student_t_dof": float(config.student_t_dof)},
    )
