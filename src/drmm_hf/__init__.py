"""D-RMM: end-to-end object detection as a regularized mixture density, for transformers.

Importing this package registers its classes with transformers' Auto classes, so that `pipeline`, `AutoConfig`,
`AutoImageProcessor` and `AutoModelForObjectDetection` load D-RMM checkpoints.
"""

import os
import sys

if "torch" not in sys.modules:  # which reads it once
    # Threads that wait for work sleep. By default they spin, and beside other busy processes take the cores from the
    # one that they wait for (docs/train.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    import torchvision  # noqa: F401  (built for another torch it fails obscurely, deep inside of timm)
except Exception as error:  # RuntimeError where an operator is missing, OSError where a symbol is undefined
    raise ImportError(
        f"drmm_hf cannot import torchvision: {error}. Install torch and torchvision from the same index (both CPU "
        "builds or both CUDA builds): pip install --force-reinstall torch torchvision"
    ) from None

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
from transformers.models.auto import modeling_auto

from .configuration_drmm import DrmmConfig
from .configuration_drmm_detr import DrmmDetrConfig
from .image_processing_drmm import DrmmImageProcessor
from .mixture import MixtureLoss, MixtureParameters, mixture_loss, mixture_losses
from .modeling_drmm import DrmmForObjectDetection, DrmmModel, DrmmObjectDetectionOutput, DrmmPreTrainedModel
from .modeling_drmm_detr import DrmmDetrForObjectDetection

__version__ = "0.2.0"
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
