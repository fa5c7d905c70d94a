"""`medsight convert`: from a release's files to a model of ours, or to a sentence that says why not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration, MedSightProcessor
from tests.convert.command import convert, refused
from tests.convert.release import PUBLISHED, Sizes, own_name, tensor, write_release

CLIP = "unimed_clip_vit_l14_base_text_encoder.pt"
PERCEIVER = "region_perceiver/0079280.pt"
INSTRUCT = "medsight_full_instruct"
LAST = f"{INSTRUCT}/model-00003-of-00003.safetensors"
HALF = "model.perceiver.bi_blocks.1.ff_image.3.weight"


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def value(name: str, *shape: int) -> Tensor:
    """What `write_release` wrote."""
    return tensor(name, shape)


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """A release to be damaged."""
    return Path(shutil.copytree(release, tmp_path / "MedSIGHT"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made" / "model"


def test_every_tensor_is_the_release_s_bit_by_bit(converted: Path) -> None:
    """One of every rule, by values that are known without reading the release."""
    s, found = Sizes(), tensors(converted)
    eye, language = "model.vision.backbone.", "model.language_model."
    joined = value("transformer.resblocks.1.attn.in_proj_weight", 3 * s.vision, s.vision)
    for part, name in zip(joined.chunk(3), "qkv", strict=True):
        assert torch.equal(found[f"{eye}encoder.layers.1.self_attn.{name}_proj.weight"], part)
    biases = value("transformer.resblocks.2.attn.in_proj_bias", 3 * s.vision).chunk(3)
    assert torch.equal(found[f"{eye}encoder.layers.2.self_attn.k_proj.bias"], biases[1])
    assert torch.equal(found[f"{eye}embeddings.position_embedding.weight"], value("positional_embedding", 17, s.vision))
    books = [value(f"quantizer.codebooks.{k}.embedding.weight", s.codes, s.code) for k in range(s.groups)]
    assert torch.equal(found["model.codebook.codes"], torch.stack(books))
    same = {
        HALF: "region_perceiver.bi_blocks.1.ff_image.3.weight",
        "model.perceiver.region_queries": "region_perceiver.region_queries",
        "model.codebook.to_code.3.weight": "region_perceiver.to_code.3.weight",
        "model.vision_to_text.2.weight": "model.mm_projector.2.weight",  # stage 5's, not that of mm_projector.bin
        "model.text_to_vision.0.bias": "model.token_projection.0.bias",
        f"{language}layers.1.mlp.down_proj.weight": "model.layers.1.mlp.down_proj.weight",
        f"{language}embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
    }
    for ours, theirs in same.items():
        assert torch.equal(found[ours], value(theirs, *found[ours].shape)), ours
    config = MedSightConfig.from_pretrained(converted)
    with torch.device("meta"):
        model = MedSightForConditionalGeneration(config)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in model.state_dict().items()}


def test_the_library_reads_the_release_s_names_to_the_same_model(converted: Path, tmp_path: Path) -> None:
    """Another way to the same weights: the language model's folder, with the tower in it, opened as it is."""
    given = write_release(tmp_path / "MedSIGHT", clip=False, codebook=False, tower=True)
    convert(given, tmp_path / "made", "--dtype", "float32")
    shutil.copy(tmp_path / "made" / "config.json", given / INSTRUCT)
    direct = MedSightForConditionalGeneration.from_pretrained(given / INSTRUCT, dtype=torch.float32).state_dict()
    ours = tensors(tmp_path / "made")
    assert ours.keys() == direct.keys()
    assert all(torch.equal(ours[name], direct[name]) for name in ours)
    whole = tensors(converted)
    assert all(torch.equal(ours[name], whole[name]) for name in ours)
    assert {name.split(".")[1] for name in whole.keys() - ours.keys()} == {"codebook"}


def test_what_goes_with_the_weights(release: Path, converted: Path) -> None:
    config = MedSightConfig.from_pretrained(converted)
    processor = MedSightProcessor.from_pretrained(converted)
    names = {str(code): processor.codes.name(code) for code in processor.codes}
    assert names["[C2_3]"] == "[M2_3]" and len(names) == 12
    told = json.loads((release / "added_tokens.json").read_text())
    assert list(config.code_token_ids) == [told[name] for name in names.values()]
    assert config.image_token_id == told["<|image_pad|>"]
    assert config.vision_feature_layer == -2 and config.code_state == "at" and config.joint_decoding
    assert config.vision_config.hidden_act == "quick_gelu"
    text = processor.chat("Segment the liver.")
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("Segment the liver.<|im_end|>\n")  # and the model opens its turn itself
    ids = processor(text=[text + "It is [M0_1]."])["input_ids"][0].tolist()
    assert ids.count(config.image_token_id) == processor.num_visual_tokens == 16 + 3
    assert "[M0_1]" in processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|im_start|>" not in processor.tokenizer.decode(ids, skip_special_tokens=True)
    said = json.loads((converted / "generation_config.json").read_text())
    assert said["repetition_penalty"] == 1.2 and not said["do_sample"]
    assert told["<|im_end|>"] in said["eos_token_id"]
    card = (converted / "README.md").read_text()
    digest = open_checkpoint(converted).digest
    assert digest in card and "Not measured" in card
    record = json.loads((converted / "conversion.json").read_text())
    assert record["digest"] == digest
    for source in record["sources"]:
        assert source["sha256"] in card and source["file"] in card
    assert {"0079280.pt", CLIP, "0035673.pt"} < {source["file"] for source in record["sources"]}


def test_the_language_model_alone_is_rounded(release: Path, converted: Path, out: Path) -> None:
    convert(release, out, "--shard-size", "400kB")
    rounded, exact = tensors(out), tensors(converted)
    for name, t in rounded.items():
        language = name.startswith(("model.language_model.", "lm_head."))
        assert t.dtype == (torch.bfloat16 if language else torch.float32)
        assert torch.equal(t, exact[name].to(t.dtype))
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 4 and all(shard.stat().st_size < 420_000 for shard in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        with safe_open(out / shard, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in rounded.values())


def test_rows_of_codes_that_stage_4_keeps_apart_are_put_in_their_place(tmp_path: Path, out: Path) -> None:
    given = write_release(tmp_path / "MedSIGHT", split=True, shards=1)
    convert(given, out, "--dtype", "float32")
    s, found = Sizes(), tensors(out)["model.language_model.embed_tokens.weight"]
    words = value("model.embed_tokens.base_emb.weight", *found.shape)
    codes = value("model.embed_tokens.codebook_emb.weight", s.groups * s.codes, s.hidden)
    ids = json.loads((given / "added_tokens.json").read_text())
    rows = [number for name, number in ids.items() if name.startswith("[M")]
    assert torch.equal(found[rows], codes)
    others = [row for row in range(len(found)) if row not in rows]
    assert torch.equal(found[others], words[others]) and not torch.equal(found[rows], words[rows])


@pytest.mark.parametrize("whole", [True, False])
def test_both_kinds_of_tokenizer_files_come_to_the_same(whole: bool, tmp_path: Path, out: Path) -> None:
    given = write_release(tmp_path / "MedSIGHT", whole_tokenizer=whole, codebook=False)
    convert(given, out, "-q")
    tokenizer = MedSightProcessor.from_pretrained(out).tokenizer
    text = "<|im_start|>user\nThe image shows the left lung, [M1_2] and [M2_0].<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    told = json.loads((given / "added_tokens.json").read_text())
    assert {told[name] for name in ("<|im_start|>", "[M1_2]", "[M2_0]", "<|im_end|>")} <= set(ids)


def test_a_dry_run_tells_everything_and_writes_nothing(release: Path, out: Path) -> None:
    before = contents(release)
    stdout, _ = convert(release, out, "--dry-run")
    for words in (CLIP, "0079280.pt", INSTRUCT, "549,957 parameters", "12 region codes", "are free there"):
        assert words in stdout
    told = json.loads(convert(release, out, "--dry-run", "--json", "--shard-size", "1MB")[0])
    assert told["parameters"] == 549957
    assert told["tensors"]["lm_head.weight"] == {
        "shape": [338, 32], "dtype": "BF16", "from": ["model-00003-of-00003.safetensors"]
    }  # fmt: skip
    assert sum(told["files"].values()) == told["bytes"]
    assert list(out.parent.iterdir()) == [] and contents(release) == before


def damage(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Changes the tensors of a file of the release."""
    if file.suffix == ".safetensors":
        table = load_file(file)
        change(table)
        save_file(table, file)
        index = file.parent / "model.safetensors.index.json"
        told = json.loads(index.read_text())
        told["weight_map"] = {n: f for n, f in told["weight_map"].items() if f != file.name}
        told["weight_map"] |= dict.fromkeys(table, file.name)
        index.write_text(json.dumps(told))
        return
    content = torch.load(file, weights_only=False)
    change(content.get("model") or content["state_dict"])
    torch.save(content, file)


def test_all_that_does_not_fit_is_listed_by_name(copy: Path, out: Path) -> None:
    def perceiver(table: dict[str, Tensor]) -> None:
        del table["region_perceiver.bi_blocks.1.ff_image.3.weight"]
        del table["region_perceiver.init_ff.3.weight"]
        table["region_perceiver.mystery.weight"] = torch.ones(2)

    def language(table: dict[str, Tensor]) -> None:
        table["model.norm.weight"] = torch.ones(33)
        table["model.token_projection.2.bias"] = torch.ones(64, dtype=torch.int32)

    damage(copy / PERCEIVER, perceiver)
    damage(copy / LAST, language)
    damage(copy / CLIP, lambda table: table.pop("module.visual.ln_pre.bias"))
    said = refused(copy, out=out)
    assert sorted(said.splitlines()[:-1]) == [
        "missing: image_encoder.ln_pre.bias",
        "missing: region_perceiver.bi_blocks.1.ff_image.3.weight",
        "missing: region_perceiver.init_ff.3.weight",
        "unexpected: region_perceiver.mystery.weight in 0079280.pt",
        "wrong shape: model.norm.weight in model-00003-of-00003.safetensors is [33], expected [32]",
        "wrong type: model.token_projection.2.bias in model-00003-of-00003.safetensors is I32, expected one of "
        "F64, F32, F16, BF16",
    ]
    assert "6 tensors do not fit" in said.splitlines()[-1]
    assert refused(copy, "--dry-run", out=out) == said


def test_the_plan_at_full_size(tmp_path: Path, out: Path) -> None:
    """All names, shapes and ids of the release as it is, from files without values."""
    given = write_release(tmp_path / "MedSIGHT", PUBLISHED, hollow=True)
    ids = json.loads((given / "added_tokens.json").read_text())
    assert (ids["[M0_0]"], ids["[M17_31]"], ids["<|image_pad|>"]) == (151669, 152244, 151655)
    told = json.loads(convert(given, out, "--dry-run", "--json", "-q")[0])
    assert told["parameters"] == 8_644_966_646
    assert told["tensors"]["lm_head.weight"]["shape"] == [152245, 4096]
    assert told["tensors"]["model.codebook.codes"]["shape"] == [18, 32, 64]
    assert len(told["files"]) > 1 and max(told["files"].values()) < 5e9


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (CLIP, ("no image encoder", "--clip")),
        (PERCEIVER, ("no region perceiver", "--perceiver")),
        (INSTRUCT, ("no folder of a language model", "llava_qwen")),
        (LAST, ("lacks model-00003-of-00003.safetensors",)),
        (f"{INSTRUCT}/merges.txt", ("has no tokenizer", "merges.txt")),
    ],
)
def test_a_missing_file_is_named(gone: str, words: tuple[str, ...], copy: Path, out: Path) -> None:
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = refused(copy, out=out)
    assert all(word in said for word in words) and said.count("\n") == 1


@pytest.mark.parametrize("name", [LAST, CLIP, PERCEIVER, "mm_projector.bin", f"{INSTRUCT}/config.json"])
def test_a_truncated_file_is_named(name: str, copy: Path, out: Path) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) * 2 // 3])
    said = refused(copy, out=out)
    assert Path(name).name in said and said.count("\n") == 1


def test_a_poisoned_file_is_refused_and_nothing_of_it_is_run(copy: Path, out: Path) -> None:
    class Poison:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {out.parent / 'was_here'}",)

    content = torch.load(copy / PERCEIVER, weights_only=False)
    torch.save(content | {"args": Poison()}, copy / PERCEIVER)
    said = refused(copy, out=out)
    assert "system" in said and "0079280.pt" in said and "nothing of it was run" in said
    assert not (out.parent / "was_here").exists()


def test_what_training_left_beside_the_weights_is_not_opened(copy: Path, out: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (copy / INSTRUCT / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    convert(copy, out, "--dry-run")


def test_adapters_are_refused_where_a_model_should_be_and_left_out_elsewhere(copy: Path, out: Path) -> None:
    (copy / "lora").mkdir()
    (copy / "lora" / "adapter_config.json").write_text("{}")
    (copy / "lora" / "adapter_model.safetensors").write_bytes(b"")
    shown, _ = convert(copy, out, "--dry-run")
    assert "adapter_model.safetensors" in shown
    instruct = copy / INSTRUCT
    (instruct / "adapter_config.json").write_text("{}")
    assert "merge" in refused(copy, out=out).lower()
    shutil.rmtree(instruct)
    assert "merge" in refused(copy, out=out).lower()


def test_two_of_one_kind_have_to_be_told_apart(copy: Path, out: Path) -> None:
    shutil.copy(copy / PERCEIVER, copy / "0079281.pt")
    said = refused(copy, out=out)
    assert "0079281.pt" in said and "0079280.pt" in said and "--perceiver" in said
    convert(copy, out, "--dry-run", "--perceiver", copy / PERCEIVER)
    assert "holds the image encoder" in refused(copy, "--perceiver", copy / CLIP, out=out)


def test_values_that_are_not_finite_are_named(copy: Path, out: Path) -> None:
    damage(copy / LAST, lambda table: table["lm_head.weight"][3].fill_(float("nan")))
    _, said = convert(copy, out, "-q", code=2)
    assert "lm_head.weight" in said and "not a number" in said and not out.exists()
    damage(copy / LAST, lambda table: table["lm_head.weight"].zero_())
    convert(copy, out, "-q")  # of the changed source, from the beginning


def test_tokens_that_are_numbered_otherwise_are_refused(copy: Path, out: Path) -> None:
    ids = json.loads((copy / "added_tokens.json").read_text())
    ids["[M0_0]"], ids["[M0_1]"] = ids["[M0_1]"], ids["[M0_0]"]
    (copy / "added_tokens.json").write_text(json.dumps(ids))
    assert "[M0_" in refused(copy, out=out)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -32},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": None},
        {"vocab_size": "all"},
        {"mm_projector_type": "linear"},
        {"mm_vision_select_layer": -30},
        {"rope_theta": "x"},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict[str, Any], copy: Path, out: Path) -> None:
    file = copy / INSTRUCT / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    refused(copy, out=out)


def test_a_tensor_that_tells_sizes_and_makes_no_sense_is_refused(copy: Path, out: Path) -> None:
    damage(copy / CLIP, lambda table: table.update({"module.visual.conv1.weight": torch.ones(5)}))
    refused(copy, out=out)


def test_a_model_is_replaced_on_demand_only(release: Path, out: Path) -> None:
    convert(release, out, "-q")
    first = contents(out)
    assert "--overwrite" in refused(release, out=out)
    (out / "mine.txt").write_text("x")
    convert(release, out, "-q", "--overwrite")
    assert contents(out) == first
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    other = out.parent / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    assert "no MedSIGHT model" in refused(release, "--overwrite", out=other)
    assert (other / "thesis.tex").exists()


def test_a_full_disk_is_known_before_anything_is_written(
    release: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(out.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert "GB left" in refused(release, out=out)


def test_a_disk_that_fills_meanwhile_is_named_and_what_is_done_stays(release: Path, out: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, limits[1]))
    try:
        _, said = convert(release, out, "--shard-size", "300kB", "-q", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "cannot be read or written: File too large" in said and not out.exists()
    convert(release, out, "--shard-size", "300kB", "-q")
    open_checkpoint(out)


@pytest.mark.parametrize("options", [("--dtype", "int8"), ("--shard-size", "much"), ("--clip", "nowhere.pt")])
def test_bad_options_are_named(options: tuple[str, str], release: Path, out: Path) -> None:
    assert options[1] in refused(release, *options, out=out)


PROGRAM = """
import sys
from tests.convert.command import command
command()(sys.argv[1:])
"""


def test_a_killed_conversion_goes_on_where_it_was(
    release: Path, converted: Path, tmp_path: Path, repository: Path
) -> None:
    given = Path(shutil.copytree(release, tmp_path / "MedSIGHT"))
    options = ("--dtype", "float32", "--shard-size", "50kB")
    out, unfinished = tmp_path / "model", tmp_path / ".model.partial"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "convert", str(given), str(out), *options, "-q"],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )

    def done() -> dict[str, tuple[int, int]]:
        """Finished shards, and which file each is."""
        files = unfinished.glob("*.safetensors") if unfinished.is_dir() else ()
        return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}

    until = time.monotonic() + 60
    while len(done()) < 5 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = done()
    assert len(kept) >= 5 and not out.exists()
    copied = Path(shutil.copytree(unfinished, tmp_path / ".other.partial"))
    _, said = convert(os.path.relpath(given), out, *options)
    assert f"interrupted conversion: {len(kept)} of" in said
    assert len(kept) < len(list(out.glob("*.safetensors")))
    made = {name: (out / name).stat() for name in kept}
    assert {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in made.items()} == kept
    ours, exact = tensors(out), tensors(converted)
    assert ours.keys() == exact.keys() and all(torch.equal(ours[name], exact[name]) for name in ours)
    assert not unfinished.exists()
    # The same, but a source has changed meanwhile: nothing of what was done is of use.
    os.utime(given / CLIP)
    before = {file.name: file.stat().st_mtime_ns for file in copied.glob("*.safetensors")}
    _, said = convert(given, tmp_path / "other", *options)
    assert "interrupted" not in said
    assert all((tmp_path / "other" / name).stat().st_mtime_ns != then for name, then in before.items())
    assert contents(tmp_path / "other") == contents(out)


def test_names_of_the_tower_are_those_of_its_own_files() -> None:
    before = "model.vision_tower.vision_tower."
    assert own_name(f"{before}image_encoder.ln_pre.bias") == "ln_pre.bias"
    assert own_name(f"{before}region_perceiver.x") == "region_perceiver.x"
