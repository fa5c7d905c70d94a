"""The model at the size of the released weights, with random ones: what it takes, and how fast it answers.

    python benchmarks/full_size.py [--tiny] [--precisions bf16 int8 int4] [--tokens 128] [--repeats 5] [--codes 4]
                                   [--scratch DIR] [--json FILE] [--write docs/performance.md]

8.6 billion random numbers are made on the GPU in bf16 and saved as a checkpoint (17 GB in --scratch, removed at the
end), which is then opened as any other, in each precision, each in a process of its own. Speed does not depend on the
values. "generate" is `transformers.generate` of the library's own class around the same weights, on the same prompt;
where our loop writes other tokens than that, it is said. Without a GPU, and with --tiny, a model of a few thousand
weights is measured instead, which shows that the benchmark works and nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from common import QUESTION
from engine import Bench
from transformers import CLIPVisionConfig, Qwen3Config

from medsight_core.codes import RegionVocabulary
from medsight_core.inference.decoding import Slots, prefill
from medsight_core.inference.fixed import Boards, cuda_compiler
from medsight_core.inference.grounding import decode_masks
from medsight_core.inference.loading import quiet_loading
from medsight_core.inference.running import Running
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)

BEGIN: Final = "<!-- full size: written by benchmarks/full_size.py -->"
END: Final = "<!-- full size: end -->"
CLIP_MEAN, CLIP_DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

ROWS: Final = (
    ("load", "load, from opening the folder to a model on the device (s)", ".1f"),
    ("weights", "memory with weights alone (GiB)", ".2f"),
    ("peak", "memory at most (GiB)", ".2f"),
    ("first_token", "time to first token: image, perceiver, prompt (s)", ".3f"),
    ("plain", "tokens/s, plain loop", ".1f"),
    ("fixed", "tokens/s, fixed shapes{compiled}", ".1f"),
    ("fixed_wait", "wait for the first of these answers (s)", ".1f"),
    ("generate", "tokens/s, transformers generate", ".1f"),
    ("mask", "mask of 1 code (s)", ".3f"),
    ("masks", "masks of {codes} codes together (s)", ".3f"),
)


def configuration(*, tiny: bool, image: int, prompt: int, codes: list[int], words: int) -> MedSightConfig:
    """The released sizes, or tiny ones of the same kinds."""
    ids: dict[str, Any] = {"image_token_id": image, "prompt_token_id": prompt, "code_token_ids": codes}
    if not tiny:
        return MedSightConfig(**ids)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    text = Qwen3Config(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    return MedSightConfig(
        vision_config=vision, text_config=text, region_dim=32, perceiver_heads=2, perceiver_head_dim=16, **ids
    )


def make(folder: Path, *, tiny: bool, device: str) -> int:
    """Saves a checkpoint with random weights; gives their number."""
    from training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer([QUESTION] * 3, vocab_size=1024, groups=18, codes=32)
    config = configuration(
        tiny=tiny,
        image=tokenizer.convert_tokens_to_ids("<image>"),
        prompt=tokenizer.convert_tokens_to_ids("<prompt>"),
        codes=list(RegionVocabulary.from_tokens(tokenizer.get_vocab()).token_ids.values()),
        words=len(tokenizer),
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = MedSightForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    side = config.vision_config.image_size
    images = MedSightImageProcessor(size=side, image_mean=CLIP_MEAN, image_std=CLIP_DEVIATION)
    with torch.inference_mode():
        seen = model.model.encode_image(torch.zeros(1, 3, side, side, dtype=torch.bfloat16, device=device))
        tokens = model.model.visual_tokens(seen).shape[1]
    with quiet_loading():
        model.save_pretrained(folder, max_shard_size="5GB")
    MedSightProcessor(images, tokenizer, num_visual_tokens=tokens).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def memory(*, peak: bool) -> float:
    """GiB on the GPU; without one, of this process."""
    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30
    field = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of some work whose outcome is waited for, after a run that does not count."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def measure(folder: Path, *, precision: str, tokens: int, repeats: int, codes: int) -> dict[str, Any]:
    """All figures of one precision."""
    bench = Bench(
        folder=folder,
        repeats=repeats,
        tokens=tokens,
        clock=time.perf_counter,
        running=Running(precision=precision),
    )
    figures: dict[str, Any] = {"load": bench.loaded, "weights": memory(peak=False)}
    core, embeds = bench.model.model, bench.embeds

    @torch.inference_mode()
    def first_token() -> object:
        made = core.embed(bench.input_ids, core.encode_image(bench.pixels))
        slots = Slots(bench.model, stop_ids=frozenset())
        return slots.join([prefill(bench.model, made)], limits=[1])[0][1][0].token

    figures["first_token"] = seconds(first_token, repeats)
    # The prompt is read in each of these as well, in all three the same way.
    figures["plain"] = tokens / seconds(lambda: bench.write(embeds), repeats)
    figures["generate"] = tokens / seconds(lambda: bench.generate(embeds), repeats)
    figures["same_as_generate"] = bench.write(embeds) == bench.generate(embeds)
    if not Running(precision=precision).quantized:
        boards = Boards(bench.model, compiler=cuda_compiler if torch.cuda.is_available() else None)
        begun = time.perf_counter()
        written = bench.write(embeds, boards=boards)
        figures["fixed_wait"] = time.perf_counter() - begun
        figures["fixed"] = tokens / seconds(lambda: bench.write(embeds, boards=boards), repeats)
        figures["fixed_same"] = written == bench.write(embeds)
    states = list(torch.randn(codes, embeds.shape[-1], device=embeds.device, dtype=embeds.dtype))
    figures["mask"] = seconds(lambda: decode_masks(bench.model, states[:1], bench.features), repeats)
    figures["masks"] = seconds(lambda: decode_masks(bench.model, states, bench.features), repeats)
    return figures | {"peak": memory(peak=True), "prompt": embeds.shape[1]}


def in_a_process(folder: Path, precision: str, given: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--precisions", precision]
    for name in ("tokens", "repeats", "codes"):
        command += [f"--{name}", str(getattr(given, name))]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return figures


def report(measured: dict[str, dict[str, Any]], machine: dict[str, Any], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    prompt = next(iter(measured.values()))["prompt"]
    words = {"codes": given.codes, "compiled": ", compiled" if machine["cuda"] else ", not compiled"}
    lines = [
        f"{machine['device']}; {machine['parameters']:,} parameters; a prompt of {prompt} tokens, {given.tokens} "
        f"written; medians of {given.repeats}; torch {machine['torch']}, transformers {machine['transformers']}.",
        "",
        f"| | {' | '.join(measured)} |",
        "|---|" + "---|" * len(measured),
    ]
    for name, label, digits in ROWS:
        cells = [format(m[name], digits) if name in m else "-" for m in measured.values()]
        lines.append(f"| {label.format(**words)} | {' | '.join(cells)} |")
    others = [p for p, m in measured.items() if not (m["same_as_generate"] and m.get("fixed_same", True))]
    if others:
        lines += ["", f"Near ties are rounded apart: not all loops wrote the same tokens in {', '.join(others)}."]
    return "\n".join(lines)


def write_into(file: Path, table: str) -> None:
    """Puts the table between the marks of a page."""
    page = file.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"{file} does not have the two marks, each once: {BEGIN} and {END}")
    before, rest = page.split(BEGIN)
    file.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    """Makes the checkpoint, measures, prints the table, writes it where asked."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Measure the model at the size of the released weights.")
    parser.add_argument("--tiny", action="store_true", help="a few thousand weights, to try the benchmark itself")
    parser.add_argument("--precisions", nargs="+", help="default: bf16, int8 and int4, on a CPU fp32 and int8")
    parser.add_argument("--tokens", type=int, default=128, help="written by each run of a decode loop")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement")
    parser.add_argument("--codes", type=int, default=4, help="whose masks are decoded together")
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoint while it is measured")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page, between its marks")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        sizes = {"tokens": given.tokens, "repeats": given.repeats, "codes": given.codes}
        print(json.dumps(measure(given.folder, precision=given.precisions[0], **sizes)))
        return
    tiny = given.tiny or not cuda
    if tiny and not given.tiny:
        print("No CUDA device is here: a tiny model is measured, which says nothing about the large one.")
    small = ["int8", "int4"] if cuda else ["int8"]
    precisions = given.precisions or ["bf16" if cuda else "fp32", *(small if find_spec("bitsandbytes") else [])]
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        parameters = make(Path(scratch) / "random", tiny=tiny, device="cuda" if cuda else "cpu")
        if cuda:
            torch.cuda.empty_cache()
        measured = {p: in_a_process(Path(scratch) / "random", p, given) for p in precisions}
    machine = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.processor() or platform.machine()})",
        "cuda": cuda,
        "parameters": parameters,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    table = report(measured, machine, given)
    print(table)
    if given.json is not None:
        content = {"machine": machine, "measured": measured}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if given.write is not None:
        write_into(given.write, table)


if __name__ == "__main__":
    main()
