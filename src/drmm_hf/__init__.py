"""D-RMM: end-to-end object detection as a regularized mixture density, for transformers.

Importing this package registers its classes with transformers' Auto classes, so that `pipeline`, `AutoConfig`,
`AutoImageProcessor` and `AutoModelForObjectDetection` load D-RMM checkpoints.
"""

from ._environment import check_torchvision

check_torchvision()  # before anything imports it: a CPU torch beside a CUDA torchvision fails obscurely

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from .configuration_drmm import DrmmConfig  # noqa: E402
from .configuration_drmm_detr import DrmmDetrConfig  # noqa: E402
from .image_processing_drmm import DrmmImageProcessor  # noqa: E402
from .mixture import MixtureLoss, MixtureParameters, mixture_loss, mixture_losses  # noqa: E402
from .modeling_drmm import (  # noqa: E402
    DrmmForObjectDetection,
    DrmmModel,
    DrmmObjectDetectionOutput,
    DrmmPreTrainedModel,
)
from .modeling_drmm_detr import DrmmDetrForObjectDetection  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "DrmmConfig",
    "DrmmDetrConfig",
    "DrmmDetrForObjectDetection",
    "DrmmForObjectDetection",
    "DrmmImageProcessor",
    "DrmmModel",
    "DrmmObjectDetectionOutput",
    "DrmmPreTrainedModel",
    "MixtureLoss",
    "MixtureParameters",
    "mixture_loss",
    "mixture_losses",
]

AutoConfig.register("drmm", DrmmConfig)
AutoModel.register(DrmmConfig, DrmmModel)
AutoModelForObjectDetection.register(DrmmConfig, DrmmForObjectDetection)
AutoImageProcessor.register(DrmmConfig, image_processor_classes={"torchvision": DrmmImageProcessor})
# `pipeline` checks a model's class name against this table and logs an error if it is not there
modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["drmm"] = "DrmmForObjectDetection"

AutoConfig.register("drmm_detr", DrmmDetrConfig)  # its image processor is the detector's own
AutoModelForObjectDetection.register(DrmmDetrConfig, DrmmDetrForObjectDetection)
modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["drmm_detr"] = "DrmmDetrForObjectDetection"
