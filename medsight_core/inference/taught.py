"""What a model was taught to find in a kind of scan: nobody wants optic discs in the report of a CT."""

from __future__ import annotations

from medsight_core.inference.nearest import GROUP_OF_MODALITY
from medsight_core.model import MedSightConfig


def taught(config: MedSightConfig, modality: str) -> tuple[str, ...]:
    """The classes that the training data showed in a modality, in their order.

    All of them where the modality of the scan is not known, where the checkpoint does not say what was shown in which,
    or where nothing was shown in this one.

    Args:
        config: Of the model.
        modality: Of the scan.
    """
    names, shown_in = tuple(config.class_names), config.class_modalities or {}
    group = dict(GROUP_OF_MODALITY).get(modality, modality)
    here = tuple(name for name in names if group in shown_in.get(name, (group,)))
    return here if any(group in groups for groups in shown_in.values()) else names
