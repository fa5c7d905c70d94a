"""MedSIGHT: image encoder, region perceiver, codebook and language model as one transformers model.

    pixels ─ VisionEncoder ─ grid ─ RegionPerceiver ─ region tokens ┐
    prompts ─ PromptEncoder ──────────┘                              ├ P_v→t ─ language model ─ words and region codes
                                   finest features I_r               ┘                                   │
                                          └───────────── mask ◄──────────── P_t→v ◄── hidden state of a code

Features of an image are a value (`ImageFeatures`) that is passed on, never kept in a module: two requests cannot
swap images, and a second question on the same image needs no second look.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

from medsight_core.model.codebook import ModalityGroupedCodebook
from medsight_core.model.configuration import MedSightConfig
from medsight_core.model.conversion import unread
from medsight_core.model.perceiver import (
    CrossAttention,
    PerceiverOutput,
    PerceiverStart,
    RegionPerceiver,
    SegmentationHead,
)
from medsight_core.model.projectors import text_to_vision, vision_to_text
from medsight_core.model.prompt_encoder import PromptEncoder
from medsight_core.model.vision import VisionEncoder, VisionFeatures


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """All that is known of a batch of images (with their prompts), for reading and for decoding masks.

    Attributes:
        vision: the encoder's features.
        details: what the perceiver adds to its pixels at each stage (details and prompt hints).
        regions: the perceiver's pass with its learned queries.
        prompt: refined prompt token `(batch, 1, region_dim)`; None without a prompt encoder or without prompts.
        prompt_present: images that have a prompt `(batch,)`.
        start: what the perceiver's passes over these images have in common; None where it was not kept.
    """

    vision: VisionFeatures
    details: tuple[Tensor, ...]
    regions: PerceiverOutput
    prompt: Tensor | None
    prompt_present: Tensor | None
    start: PerceiverStart | None = None


@dataclass
class MedSightOutput(ModelOutput):
    """Output of `MedSightForConditionalGeneration`.

    Attributes:
        loss: language modelling loss where labels were given.
        logits: `(batch, length, vocabulary)`.
        last_hidden_state: `(batch, length, hidden)` after the final norm.
        past_key_values: the cache.
        image_features: `ImageFeatures` that were used or made; pass them on instead of the pixels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    image_features: ImageFeatures | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MedSightPreTrainedModel(PreTrainedModel):
    """Common to both MedSIGHT classes."""

    config: MedSightConfig
    config_class = MedSightConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values"]
    _no_split_modules = ["BidirectionalBlock"]
    _keys_to_ignore_on_load_unexpected = unread()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Own layers start by their fan-in: a fixed deviation that suits wide language models starves narrow ones."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = getattr(module, "initial_gain", 1.0) * module.weight[0].numel() ** -0.5
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)
        if isinstance(module, RegionPerceiver):
            initialization.normal_(module.region_queries, std=1.0)
        elif isinstance(module, ModalityGroupedCodebook):
            initialization.normal_(module.codes, std=1.0)


class MedSightModel(MedSightPreTrainedModel):
    """Everything but the word head."""

    def __init__(self, config: MedSightConfig) -> None:
        super().__init__(config)
        dim, hidden = config.region_dim, config.text_config.hidden_size
        self.vision = VisionEncoder(config)
        self.perceiver = RegionPerceiver(
            dim=dim,
            num_queries=config.num_region_queries,
            num_stages=config.perceiver_stages,
            num_stacks=config.perceiver_stacks,
            num_classes=config.num_classes,
            heads=config.perceiver_heads,
            head_dim=config.perceiver_head_dim,
            ff_mult=config.perceiver_ff_mult,
            self_attention=config.perceiver_self_attention,
        )
        self.prompt_encoder = PromptEncoder(dim=dim, num_stages=config.perceiver_stages) if config.use_prompts else None
        self.codebook = (
            ModalityGroupedCodebook(
                dim=dim,
                code_dim=config.code_dim,
                num_groups=config.num_code_groups,
                codes_per_group=config.codes_per_group,
                num_classes=config.num_classes,
                summary_dim=self.vision.summary_width,
            )
            if config.use_codebook
            else None
        )
        self.vision_to_text = vision_to_text(dim, hidden)
        self.text_to_vision = text_to_vision(hidden, dim)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    # -- seeing ---------------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor, prompt_raster: Tensor | None = None) -> ImageFeatures:
        """Look at a batch of images.

        Args:
            pixel_values: `(batch, 3, height, width)`, normalised.
            prompt_raster: prompts `(batch, channels, height, width)`, see `prompt_encoder.CHANNELS`.
        """
        return self.perceive(self.vision(pixel_values), prompt_raster)

    def perceive(self, vision: VisionFeatures, prompt_raster: Tensor | None = None) -> ImageFeatures:
        """The perceiver's pass over encoded images; a further click needs only this."""
        if prompt_raster is None or self.prompt_encoder is None:
            start = self.perceiver.start(vision.grid, details=vision.details)
            regions = self.perceiver(start, details=vision.details)
            return ImageFeatures(
                vision=vision,
                details=vision.details,
                regions=regions,
                prompt=None,
                prompt_present=None,
                start=self.kept(start),
            )
        prompt = self.prompt_encoder(prompt_raster, vision.grid)
        details = add_hints(vision.details, prompt.hints)
        queries = self.perceiver.initial_queries(len(vision.grid), prompt.token)
        mask = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
        mask[:, -1] = prompt.present
        start = self.perceiver.start(vision.grid, details=details)
        out = self.perceiver(start, queries, query_mask=mask, details=details)
        return ImageFeatures(
            vision=vision,
            details=details,
            regions=out,
            prompt=out.queries[:, -1:],
            prompt_present=prompt.present,
            start=self.kept(start),
        )

    def kept(self, start: PerceiverStart) -> PerceiverStart | None:
        """What is worth keeping for `decode_queries`: nothing where masks need no second pass, or where one pass may
        want gradients that the other did without."""
        return start if self.config.mask_decoder == "perceiver" and not torch.is_grad_enabled() else None

    def region_tokens(self, features: ImageFeatures) -> Tensor:
        """Region tokens Q_r `(batch, queries, region_dim)`, without the prompt token."""
        return features.regions.queries[:, : self.config.num_region_queries]

    def visual_tokens(self, features: ImageFeatures) -> Tensor:
        """P_v→t of [I; Q_r]: what stands in the text for an image, `(batch, tokens, hidden)`."""
        patches, pool = features.vision.grid, self.config.visual_token_pooling
        if pool > 1:
            patches = nn.functional.avg_pool2d(patches.permute(0, 3, 1, 2), pool).permute(0, 2, 3, 1)
        tokens = patches.flatten(1, 2)
        if self.config.use_region_tokens:
            tokens = torch.cat((tokens, self.region_tokens(features)), dim=1)
        return self.vision_to_text(tokens)

    def get_image_features(self, pixel_values: Tensor, prompt_raster: Tensor | None = None, **kwargs):
        """Visual tokens in the library's form: `pooler_output` is the list of each image's tokens."""
        features = self.encode_image(pixel_values, prompt_raster)
        return BaseModelOutputWithPooling(
            last_hidden_state=features.regions.queries, pooler_output=list(self.visual_tokens(features))
        )

    # -- reading --------------------------------------------------------------------------------------------------

    def embed(self, input_ids: Tensor, features: ImageFeatures | None, image_index: Tensor | None = None) -> Tensor:
        """Word embeddings with placeholders replaced by visual and prompt tokens.

        Args:
            input_ids: `(batch, length)`.
            features: of the images; None leaves the words alone.
            image_index: which image each row of text is about `(batch,)`; row i is about image i when None.

        Raises:
            ValueError: when a row's number of placeholders is not the number of visual tokens.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if features is None:
            return embeds
        visual = self.visual_tokens(features)
        visual = (visual if image_index is None else visual[image_index]).to(embeds.dtype)
        places = input_ids == self.config.image_token_id
        counts = places.sum(1)
        if not bool((counts == visual.shape[1]).all()):
            raise ValueError(
                f"image placeholders per text: {counts.tolist()}, visual tokens per image: {visual.shape[1]}; "
                "use MedSightProcessor, which writes one placeholder for each visual token"
            )
        embeds = embeds.masked_scatter(places[..., None], visual)
        if self.config.prompt_token_id is not None and features.prompt is not None:
            prompt = self.vision_to_text(features.prompt).to(embeds.dtype)
            prompt = prompt if image_index is None else prompt[image_index]
            embeds = torch.where((input_ids == self.config.prompt_token_id)[..., None], prompt, embeds)
        return embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        prompt_raster: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_features: ImageFeatures | None = None,
        image_index: Tensor | None = None,
        **kwargs,
    ) -> MedSightOutput:
        """Read text about images. Give `pixel_values` or, when they were encoded before, `image_features`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if pixel_values is not None and image_features is None:
            image_features = self.encode_image(pixel_values, prompt_raster)
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, image_features, image_index)
        out = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return MedSightOutput(
            last_hidden_state=out.last_hidden_state,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            image_features=image_features,
        )

    # -- drawing --------------------------------------------------------------------------------------------------

    def decode_codes(self, states: Tensor, features: ImageFeatures, image_index: Tensor) -> Tensor:
        """Masks of region codes.

        Args:
            states: hidden states of codes `(codes, hidden)`, at the position that `config.code_state` names.
            features: of the images the codes speak of.
            image_index: image of each code `(codes,)`, in ascending order.

        Returns:
            Mask logits `(codes, height, width)` on the model's mask grid.
        """
        queries = self.text_to_vision(states)
        if not len(queries):
            height, width = features.regions.mask_logits.shape[-2:]
            return queries.new_zeros(0, height, width)
        if self.config.mask_decoder == "head":
            pixels = features.regions.pixels
            pixels = pixels.expand(len(queries), -1, -1, -1) if len(pixels) == 1 else pixels[image_index]
            return self.perceiver.segmentation_cls_head.masks(queries[:, None], pixels)[:, 0]
        return self.decode_queries(queries, features, image_index)

    def decode_queries(self, queries: Tensor, features: ImageFeatures, image_index: Tensor) -> Tensor:
        """A second full pass with the codes as initial queries (`mask_decoder="perceiver"`)."""
        if not self.config.joint_decoding:
            # Pixels read all queries of their image, so codes of one pass would depend on each other. Without gradients
            # one at a time: the finest pixels of several would only need more memory.
            together = len(queries) if torch.is_grad_enabled() else 1
            passes = [
                self.look_again(features, images, some[:, None])
                for some, images in zip(queries.split(together), image_index.split(together), strict=True)
            ]
            return torch.cat([masks[:, 0] for masks in passes])
        if bool((image_index.diff() < 0).any()):
            raise ValueError("image_index is not ascending; give the codes of one image next to each other")
        number = len(features.vision.grid)
        counts = torch.bincount(image_index, minlength=number)
        images = counts.nonzero().flatten()
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(queries), device=queries.device) - first[image_index]
        padded = queries.new_zeros(number, int(counts.max()), queries.shape[-1])
        padded[image_index, slot] = queries
        real = torch.arange(padded.shape[1], device=queries.device) < counts[:, None]
        row = torch.searchsorted(images, image_index)
        return self.look_again(features, images, padded[images], real[images])[row, slot]

    def look_again(
        self, features: ImageFeatures, images: Tensor, queries: Tensor, query_mask: Tensor | None = None
    ) -> Tensor:
        """Mask logits of `queries` `(images, n, region_dim)` on some of the images, from the kept start if there is."""
        details = tuple(detail[images] for detail in features.details)
        if features.start is None or torch.is_grad_enabled():
            start = self.perceiver.start(features.vision.grid[images], details=details)
        else:
            start = features.start.select(images)
        return self.perceiver(start, queries, query_mask=query_mask, details=details).mask_logits


class MedSightForConditionalGeneration(MedSightPreTrainedModel, GenerationMixin):
    """MedSIGHT with its word head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: MedSightConfig) -> None:
        super().__init__(config)
        self.model = MedSightModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, prompt_raster: Tensor | None = None, **kwargs):
        """See `MedSightModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, prompt_raster, **kwargs)

    def code_positions(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and positions of the region codes in `(batch, length)`, in reading order."""
        codes = torch.as_tensor(list(self.config.code_token_ids), device=input_ids.device)
        rows, positions = torch.isin(input_ids, codes).nonzero(as_tuple=True)
        return rows, positions

    def code_states(self, hidden: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The states `(codes, hidden)` that are decoded: at the codes or one before, as the configuration says."""
        shift = 0 if self.config.code_state == "at" else 1
        return hidden[rows, (positions - shift).clamp_min(0)]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        prompt_raster: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_features: ImageFeatures | None = None,
        image_index: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> MedSightOutput:
        """Next-word logits, and the language modelling loss where `labels` are given (-100 is not scored)."""
        out = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            prompt_raster=prompt_raster,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            image_index=image_index,
            **kwargs,
        )
        hidden = out.last_hidden_state
        kept = hidden[:, slice(-logits_to_keep, None)] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        out.loss, out.logits = loss, logits
        return out

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, inputs_embeds=None, is_first_iteration=False, **kwargs
    ):
        """Pixels and features are read once, with the prompt; later steps have only words."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "prompt_raster", "image_features"):
                inputs[name] = None
        return inputs


def add_hints(details: tuple[Tensor, ...], hints: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Details and prompt hints of each stage, summed; stages that have only one keep that one."""
    joined = [d + h.to(d.dtype) for d, h in zip(details, hints, strict=False)]
    return tuple(joined) + tuple(hints[len(details) :]) + tuple(details[len(hints) :])


__all__ = [
    "CrossAttention",
    "ImageFeatures",
    "MedSightForConditionalGeneration",
    "MedSightModel",
    "MedSightOutput",
    "SegmentationHead",
]
