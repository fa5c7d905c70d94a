"""Runs a stage of a recipe: data, model, stage, loop.

Stages live in one run folder: `stage1`, `stage2`, `stage3-codebook`, `stage3-align`, `stage4`. Each starts from the
one before, or from the recipe's `start`, a model that was trained elsewhere, and can be interrupted and resumed.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medsight_core.errors import InputError
from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from training.build import (
    LanguageConfig,
    hold_language_model,
    name_classes,
    new_model,
    new_processor,
    open_model,
    quiet,
)
from training.data.biomedparse import Sample, class_modalities, class_names, hold_out, load_samples
from training.data.conversations import corpus
from training.data.volumes import load_volumes
from training.data.vqa import load_vqa
from training.grounded import Grounded, GroundedConfig
from training.loop import LoopConfig, train
from training.lora import BASE as ADAPTERS
from training.lora import Adapters, LoraSettings, adapt, base_of, merge
from training.recipe import configure
from training.stage1_region_perceiver import RegionPerceiverConfig, RegionPerceiverStage
from training.stage2_vision_to_text import VisionToTextConfig, VisionToTextStage
from training.stage3_codebook import CodebookConfig, CodebookStage, TextToVisionStage, put_codes_into_vocabulary
from training.stage4_instruction import InstructionStage

SIDE = 256
"""Of pictures that the recipe does not say a `data.size` for."""

BEFORE = {2: "stage1", 3: "stage2", 4: "stage3-align"}


class Run:
    """One recipe and its folder.

    Args:
        recipe: see `training.recipe`.
        folder: where the stages' checkpoints go.
        say: told what happens, one line each.
    """

    def __init__(self, recipe: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.folder = folder
        self.say = say
        data = recipe["data"]
        root = Path(data["root"])
        if not (root / data.get("manifest", "manifest.jsonl")).exists():
            raise InputError(
                "missing_data",
                f"There is no {data.get('manifest', 'manifest.jsonl')} in {root}.",
                "Set data.root to a folder in the BiomedParse layout.",
            )
        size = data.get("size")
        samples = load_samples(root, split="train", size=size)
        self.train, self.validation = hold_out(samples, data.get("validation", 0.06))
        self.vqa = load_vqa(Path(data["vqa"]), size=size or SIDE) if data.get("vqa") else []
        self.classes = class_names(samples)
        if chosen := data.get("volumes"):
            self.train += load_volumes(
                Path(chosen["manifest"]), chosen["use"], classes=self.classes, size=size or SIDE
            )
        say(f"{len(self.train)} images to train on, {len(self.validation)} held out, {len(self.vqa)} with questions")

    def stage(self, number: int) -> Path:
        """Train one stage, or finish it; returns the folder of its model."""
        if number not in (1, 2, 3, 4):
            raise InputError("bad_stage", f"There is no stage {number}.", "Stages are 1, 2, 3 and 4.")
        if number == 1:
            return self.stage1()
        start = self.recipe.get("start")
        source = Path(start) if start else self.folder / BEFORE[number] / "last"
        if not source.exists():
            raise InputError(
                "missing_stage",
                f"Stage {number} starts from {source}, which is not there.",
                f"Train stage {number - 1} first, or name a trained model: start=FOLDER.",
            )
        return {2: self.stage2, 3: self.stage3, 4: self.stage4}[number](source)

    def stage1(self) -> Path:
        """Region perceiver, with a new model: on the recipe's `base`, or one that starts from nothing."""
        shown = class_modalities(self.train + self.validation, self.classes)
        seed = self.recipe.get("seed", 0)
        if self.recipe.get("base"):
            model, processor = self.open(Path(self.recipe["base"]))
            name_classes(model, self.classes, shown, seed=seed)
        else:
            config = self.recipe["model"] | {"class_names": self.classes, "class_modalities": shown}
            processor = new_processor(self.recipe["input"], config, corpus(self.train + self.vqa))
            model = new_model(config, processor, seed=seed)
        options = self.recipe["stages"][1]
        loop = self.loop(options)
        side = processor.image_processor.size
        config = configure(RegionPerceiverConfig, {"sizes": [[1.0, side]]} | (options.get("stage") or {}))
        self.check_sides(processor, *(size for _, size in config.sizes))
        stage = RegionPerceiverStage(
            model=model,
            processor=processor,
            config=config,
            samples=self.train,
            validation=self.validation,
            steps=loop.steps,
        )
        return self.finish("stage1", stage, loop, processor)

    def stage2(self, source: Path) -> Path:
        """P_v→t."""
        model, processor = self.open(source)
        options = self.recipe["stages"][2]
        stage = VisionToTextStage(
            grounded=self.grounded(model, processor, options, self.train + self.vqa),
            config=configure(VisionToTextConfig, options.get("stage")),
            validation=self.held_out(model, processor),
        )
        return self.finish("stage2", stage, self.loop(options), processor)

    def stage3(self, source: Path) -> Path:
        """Codebook, then P_t→v with the rows of the codes."""
        options = self.recipe["stages"][3]
        model, processor = self.open(source)
        loop = self.loop(options["codebook"])
        codebook = CodebookStage(
            grounded=self.grounded(model, processor, options["codebook"], self.train),
            config=configure(CodebookConfig, options["codebook"].get("stage")),
            steps=loop.steps,
            validation=self.held_out(model, processor),
        )
        learnt = self.finish("stage3-codebook", codebook, loop, processor)
        model, processor = self.open(learnt)
        put_codes_into_vocabulary(model)
        stage = TextToVisionStage(
            grounded=self.grounded(model, processor, options["align"], self.train),
            validation=self.held_out(model, processor),
        )
        return self.finish("stage3-align", stage, self.loop(options["align"]), processor)

    def stage4(self, source: Path) -> Path:
        """Everything that speaks, or with the recipe's group `lora` its adapters, in a folder of their own."""
        model, processor = self.open(source)
        options = self.recipe["stages"][4]
        chosen = self.recipe.get("lora")
        adapted = chosen is not None and chosen is not False
        adapters = None
        if adapted:
            settings = configure(LoraSettings, chosen if isinstance(chosen, dict) else {})
            torch.manual_seed(self.recipe.get("seed", 0))
            adapters = Adapters(adapt(model, processor, settings), base_of(source, self.recipe.get("switches")))
        stage = InstructionStage(
            grounded=self.grounded(model, processor, options, self.train + self.vqa),
            validation=self.held_out(model, processor),
            adapted=adapted,
        )
        if adapters is None:
            return self.finish("stage4", stage, self.loop(options), processor)
        self.say(f"stage4-lora: {self.loop(options).steps} steps")
        return train(stage, self.loop(options), self.folder / "stage4-lora", store=adapters)

    def open(self, source: Path) -> tuple[MedSightForConditionalGeneration, MedSightProcessor]:
        """The model of the stage before, with the recipe's switches: a way to see what a part is good for."""
        if not (source / "config.json").is_file():
            raise InputError(
                "missing_base", f"There is no model in {source}.", "Make one with medsight init, and set base to it."
            )
        model, processor = open_model(source, self.recipe.get("switches"))
        hold_language_model(model, configure(LanguageConfig, self.recipe.get("language_model")))
        return model, processor

    def grounded(
        self,
        model: MedSightForConditionalGeneration,
        processor: MedSightProcessor,
        options: dict[str, Any],
        samples: list[Sample],
    ) -> Grounded:
        """Batches of conversations over the training samples."""
        fields = {"size": processor.image_processor.size} | self.recipe.get("conversations", {})
        config = configure(GroundedConfig, fields | options.get("conversations", {}))
        self.check_sides(processor, config.size)
        return Grounded(model=model, processor=processor, samples=samples, config=config)

    def check_sides(self, processor: MedSightProcessor, *sides: int) -> None:
        """Encoders that others trained know the places of patches for one size only.

        Raises:
            InputError: bad_size.
        """
        wanted = processor.image_processor.size
        if (self.recipe.get("base") or self.recipe.get("start")) and any(side != wanted for side in sides):
            raise InputError(
                "bad_size",
                f"The recipe asks for pictures of {', '.join(map(str, sides))} pixels, and the encoder takes {wanted}.",
                "Leave the sizes out of the recipe.",
            )

    def held_out(self, model: MedSightForConditionalGeneration, processor: MedSightProcessor) -> Grounded:
        """The same over the held-out samples, without augmentation."""
        fields = {"size": processor.image_processor.size} | self.recipe.get("conversations", {})
        fields |= {"strength": 0.0, "misplaced": 0.0}
        return Grounded(
            model=model, processor=processor, samples=self.validation, config=configure(GroundedConfig, fields)
        )

    def loop(self, options: dict[str, Any]) -> LoopConfig:
        """Loop settings of a stage over those of the recipe."""
        return configure(LoopConfig, self.recipe.get("loop", {}) | options["loop"])

    def finish(self, name: str, stage: Any, loop: LoopConfig, processor: MedSightProcessor) -> Path:
        """Train and put the processor beside the weights."""
        self.say(f"{name}: {loop.steps} steps")
        last = train(stage, loop, self.folder / name)
        processor.save_pretrained(last)
        return last


def export(source: Path, target: Path, *, dtype: str = "float16", base: Path | None = None) -> Path:
    """Write a trained model for use: its weights, its processor, nothing of the training.

    Args:
        source: a stage's model folder; adapters are worked into the model they were trained on.
        target: folder to write; its model card and other files stay.
        dtype: to store the weights in: "float16", "bfloat16" (large language models, whose values fp16 may not hold)
            or "float32".
        base: where the model is that adapters belong to, when it is no longer where it was.
    """
    model, processor = merge(source, base) if (source / ADAPTERS).is_file() else open_model(source)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet():
        model.to(getattr(torch, dtype)).save_pretrained(part, max_shard_size="5GB")
    processor.save_pretrained(part)
    target.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(target / file.name)
    part.rmdir()
    return target
