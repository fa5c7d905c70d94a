"""Text and pictures to model inputs: placeholders, prompts and the chat form, in one place.

The processor writes one placeholder (`<image>`) for every visual token and a `<prompt>` placeholder where a person drew
something, so that neither model nor caller holds magic numbers.
"""

from collections.abc import Sequence

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from medsight_core.codes import RegionVocabulary
from medsight_core.prompt_raster import Mark, draw

IMAGE_TOKEN = "<image>"
PROMPT_TOKEN = "<prompt>"


class MedSightProcessor(ProcessorMixin):
    """Joins `MedSightImageProcessor` and a tokenizer.

    Args:
        image_processor, tokenizer: its parts.
        num_visual_tokens: visual tokens per image that the model puts in place of `<image>`.
        generation_header: whether a prompt ends with the opening of the assistant's turn (the released model was
            trained without).
        image_token: what stands for a visual token in the text, a token of the tokenizer.
        chat_template: overrides the tokenizer's.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_visual_tokens: int = 596,
        generation_header: bool = True,
        image_token: str = IMAGE_TOKEN,
        chat_template=None,
        **kwargs,
    ) -> None:
        self.num_visual_tokens = num_visual_tokens
        self.generation_header = generation_header
        self.image_token = image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def codes(self) -> RegionVocabulary:
        """The region codes of the tokenizer."""
        return RegionVocabulary.from_tokens(self.tokenizer.get_vocab())

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The library's hook: what stands for one image in the text."""
        return self.image_token * self.num_visual_tokens

    def chat(
        self,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        prompted: bool = False,
        answer: str | None = None,
    ) -> str:
        """A conversation about one image in the form that the model was trained on.

        Args:
            question: the question to be answered.
            history: earlier (question, raw answer) pairs; the image stands in the first question.
            prompted: whether the person drew prompts.
            answer: the answer, for training; without it the text ends where the model goes on.
        """
        messages = []
        for asked, answered in history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": f"{PROMPT_TOKEN}\n{question}" if prompted else question})
        messages[0]["content"] = f"{self.image_token}\n{messages[0]['content']}"
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        header = answer is None and self.generation_header
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        prompts: Sequence[Sequence[Mark]] | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: pictures `(rows, columns, 3)` uint8.
            text: texts with one placeholder for the image each, as `chat` writes them.
            prompts: marks of each image, in coordinates of the model's input grid (see
                `MedSightImageProcessor.transform`).
            return_tensors: "pt".
            kwargs: for the tokenizer (padding and so on).

        Returns:
            `pixel_values`, `prompt_raster` where any image has marks, `input_ids`, `attention_mask`.
        """
        data: dict = {}
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors)
        if prompts is not None and any(prompts):
            side = self.image_processor.size
            data["prompt_raster"] = torch.stack([torch.from_numpy(draw(marks, (side, side))) for marks in prompts])
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            texts = [t.replace(self.image_token, self.image_token * self.num_visual_tokens) for t in texts]
            options = {"padding": len(texts) > 1, "add_special_tokens": False} | kwargs
            data |= self.tokenizer(texts, return_tensors=return_tensors, **options)
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` yields."""
        return ["pixel_values", "prompt_raster", "input_ids", "attention_mask"]
