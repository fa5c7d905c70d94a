"""Runs a conversion: finds, plans, writes, checks, and only then puts the result where it belongs."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer
from transformers import GenerationConfig

from medsight_core.cli.console import status
from medsight_core.cli.group import say
from medsight_core.convert.agreement import compare_codes
from medsight_core.convert.card import CARD, RECORD, Digested, card, record
from medsight_core.convert.plan import Plan, make_plan
from medsight_core.convert.progress import Meter, metered
from medsight_core.convert.release import CONFIG, Part, Release, find_release, read_json
from medsight_core.convert.telling import plan_as_json, plan_as_text
from medsight_core.convert.tokens import read_tokenizer, vocabulary_of
from medsight_core.convert.writing import write_shards
from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference import checked
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.model import MedSightImageProcessor, MedSightProcessor
from medsight_core.model.official_settings import GENERATION, IMAGE_OPTIONS, IMAGE_TOKEN, PROCESSOR_OPTIONS
from medsight_core.output.folder import alone, check_folder

INTERRUPTED: Final = 130
DTYPES: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16"}
STATE: Final = ".conversion-state.json"
"""In the unfinished folder: what is being written, and the digests of the sources that were read."""

LOCK: Final = ".lock"
SPARE: Final = 64 * 2**20
"""Bytes for everything but weights."""

_CHUNK: Final = 8 * 2**20


def run_convert(
    *,
    folder: Path,
    out: Path,
    given: Mapping[Part, Path],
    added_tokens: Path | None,
    dtype: str,
    shard_bytes: int,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Runs the command; see `medsight_core.convert.cli` for the arguments."""
    if dtype not in DTYPES:
        raise InputError("bad_dtype", f'There is no type "{dtype}" to store in.', f"Choose {' or '.join(DTYPES)}.")
    out = out.absolute()
    _check_out(out, overwrite=overwrite)
    hush = quiet or as_json
    with status("Looking at the files of the release", quiet=hush):
        release = find_release(folder, given, added_tokens=added_tokens)
        tokenizer = read_tokenizer(release)
        plan = make_plan(
            release,
            vocabulary=vocabulary_of(tokenizer, release),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            dtype=DTYPES[dtype],
            largest=shard_bytes,
        )
    _refuse_problems(plan)
    unfinished = out.with_name(f".{out.name}.partial")
    if not hush or (dry_run and not as_json):
        for line in plan_as_text(plan, out):
            typer.echo(line, err=not dry_run)
    kept = _finished(plan, unfinished)
    if kept and not hush:
        say(f"note: Going on with an interrupted conversion: {len(kept)} of {len(plan.shards)} weight files are done.")
    _check_room(plan, unfinished, kept)
    if dry_run:
        if as_json:
            typer.echo(json.dumps(plan_as_json(plan, out), indent=1))
        return
    with _taken(plan, unfinished):
        try:
            digest = _convert(plan, unfinished, tokenizer, dtype=dtype, quiet=hush)
        except KeyboardInterrupt:
            say("Stopped. Say the same command again to go on.")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            raise InputError(
                "bad_output",
                f"{error.filename or unfinished} cannot be read or written: {error.strerror or error}.",
                "Make room, and say the same command again; what is done stays.",
            ) from error
        _put_in_place(unfinished, out)
    checked.remember([out / plan.shard_name(number) for number in range(len(plan.shards))], digest)
    if as_json:
        typer.echo(json.dumps({**plan_as_json(plan, out), "digest": digest}, indent=1))
    else:
        typer.echo(f"Written to {out} (digest {digest}).")
        if not quiet:
            say(f'Try it: medsight ask --model {out} SCAN "Segment the liver in this image." Research use only.')


def _check_out(out: Path, *, overwrite: bool) -> None:
    check_folder(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    ours = (out / CONFIG).is_file() and read_json(out / CONFIG).get("model_type") == "medsight"
    if not ours:
        raise InputError("bad_output", f"{out} holds something that is no MedSIGHT model.", "Choose another folder.")
    if not overwrite:
        raise InputError("bad_output", f"{out} already holds a model.", "Choose another folder, or say --overwrite.")


def _refuse_problems(plan: Plan) -> None:
    if not plan.problems:
        return
    for problem in plan.problems:
        say(problem)
    count = len(plan.problems)
    raise CheckpointError(
        "wrong_release",
        f"{plan.release.folder} does not hold a whole release: {count} tensor{'s do' if count > 1 else ' does'} not "
        "fit, see above.",
        "Take all files from one release, and download again what is damaged.",
    )


@contextmanager
def _taken(plan: Plan, unfinished: Path) -> Iterator[None]:
    """Takes the unfinished folder for this conversion alone, without what another one left there."""
    unfinished.mkdir(parents=True, exist_ok=True)
    with alone(unfinished, LOCK):
        if _state(unfinished).get("fingerprint") != plan.fingerprint():
            for path in unfinished.iterdir():  # of other sources or other settings
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            _note(unfinished, {"fingerprint": plan.fingerprint(), "digests": []})
        yield


def _finished(plan: Plan, unfinished: Path) -> list[int]:
    """Shards of this plan that an interrupted conversion has written."""
    if _state(unfinished).get("fingerprint") != plan.fingerprint():
        return []
    return [number for number in range(len(plan.shards)) if (unfinished / plan.shard_name(number)).is_file()]


def _state(unfinished: Path) -> dict[str, Any]:
    try:
        return read_json(unfinished / STATE)
    except CheckpointError:  # none yet, or cut off in the middle
        return {}


def _note(unfinished: Path, state: Mapping[str, Any]) -> None:
    partial = unfinished / f"{STATE}.partial"
    partial.write_text(json.dumps(state), encoding="utf-8")
    partial.rename(unfinished / STATE)


def _check_room(plan: Plan, unfinished: Path, kept: Sequence[int]) -> None:
    needed = plan.size - sum(tensor.size for number in kept for tensor in plan.shards[number]) + SPARE
    place = unfinished
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            "no_room",
            f"The result takes another {needed / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left.",
            "Make room, choose another folder, or store the language model with --dtype bfloat16.",
        )


def _convert(plan: Plan, unfinished: Path, tokenizer: Any, *, dtype: str, quiet: bool) -> str:
    """Fills the unfinished folder; gives the digest of its weights."""
    total = sum(file.stat().st_size for file in plan.release.files)
    with metered("Writing weights", plan.size, quiet=quiet) as meter:
        write_shards(plan, unfinished, advance=meter.advance)
    with metered("Reading digests of the sources", total, quiet=quiet) as meter:
        digested = _digests(plan.release, unfinished, meter)
    if _state(unfinished).get("fingerprint") != plan.fingerprint():
        raise CheckpointError(
            "changed", f"A file in {plan.release.folder} changed while it was converted.", "Convert it again."
        )
    settings = _save_settings(plan, unfinished, tokenizer, dtype=dtype)
    with status("Checking what was written", quiet=quiet):
        digest: str = open_checkpoint(unfinished, anew=True).digest
    page = card(plan, digested, digest=digest, settings=settings, agreement=compare_codes(plan.release))
    (unfinished / CARD).write_text(page, encoding="utf-8")
    told = json.dumps(record(plan, digested, digest=digest), indent=1)
    (unfinished / RECORD).write_text(told + "\n", encoding="utf-8")
    return digest


def _digests(release: Release, unfinished: Path, meter: Meter) -> list[Digested]:
    """SHA-256 of every source file; what an interrupted conversion has read is not read again."""
    state = _state(unfinished)
    known: list[str] = state.get("digests", [])
    for number, file in enumerate(release.files):
        if number < len(known):
            meter.advance(file.stat().st_size)
            continue
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                meter.advance(len(chunk))
        known.append(digest.hexdigest())
        _note(unfinished, state | {"digests": known})
    return [
        Digested(file=file, size=file.stat().st_size, sha256=sha256)
        for file, sha256 in zip(release.files, known, strict=True)
    ]


def _save_settings(plan: Plan, unfinished: Path, tokenizer: Any, *, dtype: str) -> dict[str, dict[str, Any]]:
    """Configuration, processor and how to generate; gives what the card tells of them beside the configuration."""
    config, vision = plan.config, plan.config.vision_config
    config.dtype = dtype
    config.save_pretrained(unfinished)
    images = MedSightImageProcessor(size=vision.image_size, patch_size=vision.patch_size, **IMAGE_OPTIONS)
    tokens = (vision.image_size // vision.patch_size) ** 2 + config.num_region_queries
    MedSightProcessor(images, tokenizer, num_visual_tokens=tokens, **PROCESSOR_OPTIONS).save_pretrained(unfinished)
    own = plan.release.instruct / "generation_config.json"
    ends = (read_json(own) if own.is_file() else {}).get("eos_token_id") or tokenizer.eos_token_id
    GenerationConfig(
        **GENERATION, bos_token_id=None, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(unfinished)
    return {
        "processor_config.json": {**IMAGE_OPTIONS, **PROCESSOR_OPTIONS, "num_visual_tokens": tokens},
        "generation_config.json": dict(GENERATION),
    }


def _put_in_place(unfinished: Path, out: Path) -> None:
    for name in (STATE, f"{STATE}.partial", LOCK):
        (unfinished / name).unlink(missing_ok=True)
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    if out.exists():
        out.rename(old)
    unfinished.rename(out)
    shutil.rmtree(old, ignore_errors=True)
