"""The configuration of a MedSIGHT model: every size and every switch, and nothing that is computed."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec


@strict
class MedSightConfig(PreTrainedConfig):
    """Configuration of `MedSightForConditionalGeneration`.

    The defaults describe the released 8B model (CLIP ViT-L/14-336 and Qwen3-8B); `medsight-mini` sets its own.

    Args:
        vision_config: any transformers vision model that yields a patch grid.
        text_config: any transformers causal language model.
        vision_feature_layer: hidden states of the vision model that make the patch grid. Several (convolutional
            encoders) are resized to the first one's grid and concatenated.
        detail_layers: finer hidden states of a convolutional encoder, coarse to fine, added to the perceiver's first
            stages. Empty for a ViT.
        detail_from_pixels: the perceiver's next stage after `detail_layers` gets features of a small convolution on
            the pixels themselves (fine structures: vessels, nuclei).
        region_dim: width of the perceiver. When the grid's width differs it is projected.
        num_region_queries, perceiver_stages, perceiver_stacks, perceiver_heads, perceiver_head_dim,
        perceiver_ff_mult, perceiver_self_attention: see `RegionPerceiver`.
        class_names: what the class head tells apart; "no object" comes on top. Empty: `num_classes` unnamed ones.
        class_modalities: in which modalities (spelt as in `modality_names`) the training data showed each class, by its
            name; None where that is not known.
        num_classes: number of classes when they have no names.
        modality_names: groups of the codebook in order; their number is K. Empty: `num_code_groups` unnamed ones.
        num_code_groups: K when the groups have no names.
        codes_per_group: region codes in each group, M.
        code_dim: width of the quantisation space.
        use_codebook: hold the quantiser (W_q, codes, W_m). The released language model does not need it.
        use_prompts: hold the prompt encoder (points, boxes, scribbles, masks).
        use_region_tokens: give the language model the region tokens beside the patch tokens.
        visual_token_pooling: side of the square of patch tokens averaged to one token for the language model.
        code_state: which position's hidden state is decoded: the code's own ("at"), from which P_t→v learns, or the one
            that predicts it ("before"), which the release's own inference takes.
        mask_decoder: "perceiver" runs a second full pass with the codes as queries; "head" takes the projected code
            against the image's finest features.
        joint_decoding: decode the codes of one answer together (masks then depend on each other) or one by one;
            only the "perceiver" decoder tells the difference.
        image_token_id, prompt_token_id: placeholders in the text for visual tokens and for the prompt token.
        code_token_ids: token id of every region code, group by group.
        codebook_beta: weight of the commitment loss.
    """

    model_type = "medsight"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="qwen3",
            init_kwargs={
                "vocab_size": 152245,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 40960,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
        ),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int | list[int] = -2
    detail_layers: list[int] | tuple[int, ...] = ()
    detail_from_pixels: bool = False
    region_dim: int = 1024
    num_region_queries: int = 20
    perceiver_stages: int = 3
    perceiver_stacks: int = 1
    perceiver_heads: int = 8
    perceiver_head_dim: int = 64
    perceiver_ff_mult: int = 4
    perceiver_self_attention: bool = False
    class_names: list[str] | tuple[str, ...] = ()
    class_modalities: dict[str, list[str]] | None = None
    num_classes: int = 17
    modality_names: list[str] | tuple[str, ...] = ()
    num_code_groups: int = 18
    codes_per_group: int = 32
    code_dim: int = 64
    codebook_beta: float = 0.25
    use_codebook: bool = True
    use_prompts: bool = True
    use_region_tokens: bool = True
    visual_token_pooling: int = 1
    code_state: Literal["at", "before"] = "at"
    mask_decoder: Literal["perceiver", "head"] = "perceiver"
    joint_decoding: bool = True
    image_token_id: int = 151655
    prompt_token_id: int | None = None
    code_token_ids: list[int] | tuple[int, ...] = ()
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.class_names:
            self.num_classes = len(self.class_names)
        if self.modality_names:
            self.num_code_groups = len(self.modality_names)

    @property
    def num_codes(self) -> int:
        """Region codes in all groups, K x M."""
        return self.num_code_groups * self.codes_per_group
