"""The model of the paper, native to transformers. Importing this package registers it with the Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from medsight_core.model.configuration import MedSightConfig
from medsight_core.model.conversion import register
from medsight_core.model.image_processing import MedSightImageProcessor
from medsight_core.model.modeling import ImageFeatures, MedSightForConditionalGeneration, MedSightModel
from medsight_core.model.processing import MedSightProcessor

register()
AutoConfig.register("medsight", MedSightConfig, exist_ok=True)
AutoModel.register(MedSightConfig, MedSightModel, exist_ok=True)
AutoModelForImageTextToText.register(MedSightConfig, MedSightForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(MedSightConfig, MedSightImageProcessor, exist_ok=True)
AutoProcessor.register(MedSightConfig, MedSightProcessor, exist_ok=True)

__all__ = [
    "ImageFeatures",
    "MedSightConfig",
    "MedSightForConditionalGeneration",
    "MedSightImageProcessor",
    "MedSightModel",
    "MedSightProcessor",
]
