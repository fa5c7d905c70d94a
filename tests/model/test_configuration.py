"""The configuration: the released model by default, strict about types, the same after saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from medsight_core.model import MedSightConfig
from tests.model.small import convolutional, transformer


def test_defaults_are_the_released_model() -> None:
    config = MedSightConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.model_type, vision.image_size, vision.patch_size, vision.hidden_size) == (
        "clip_vision_model",
        336,
        14,
        1024,
    )
    assert (vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size) == (24, 16, 4096)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert (text.model_type, text.hidden_size, text.num_hidden_layers, text.vocab_size) == ("qwen3", 4096, 36, 152245)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 8, 128)
    assert (text.rope_parameters["rope_theta"], text.rms_norm_eps) == (1e6, 1e-6)
    assert text.max_position_embeddings == 40960
    assert not text.tie_word_embeddings and not config.tie_word_embeddings
    assert (config.num_code_groups, config.codes_per_group, config.num_codes) == (18, 32, 576)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_region_queries", "20"),
        ("region_dim", 64.5),
        ("detail_from_pixels", 1),
        ("vision_feature_layer", "last"),
        ("class_names", "liver"),
        ("code_state", "after"),
        ("mask_decoder", "unet"),
        ("codebook_beta", None),
    ],
)
def test_wrong_types_are_refused(field: str, value: Any) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        MedSightConfig(**{field: value})


def test_names_count_themselves() -> None:
    config = convolutional(class_names=["a", "b"], modality_names=["CT", "MR"], codes_per_group=5)
    assert (config.num_classes, config.num_code_groups, config.num_codes) == (2, 2, 10)
    unnamed = convolutional(class_names=(), modality_names=(), num_classes=7, num_code_groups=4, codes_per_group=5)
    assert (unnamed.num_classes, unnamed.num_code_groups, unnamed.num_codes) == (7, 4, 20)


@pytest.mark.parametrize("config", [convolutional(), transformer()], ids=["convolutional", "transformer"])
def test_saving_keeps_everything(config: MedSightConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    found = MedSightConfig.from_pretrained(tmp_path)
    assert type(found.vision_config) is type(config.vision_config)
    assert type(found.text_config) is type(config.text_config)

    def plain(value: MedSightConfig) -> dict[str, Any]:
        # Tuples are lists in JSON.
        return {k: list(v) if isinstance(v, tuple) else v for k, v in value.to_dict().items()}

    assert plain(found) == plain(config)
