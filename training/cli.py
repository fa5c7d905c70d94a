"""The commands that training brings to `medsight`.

`medsight_core.cli` finds `app` through the entry point group ``medsight.commands`` and puts its commands at the top
level, so core has `medsight eval` without importing this package. Imports that take time stay inside the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsight_core.cli.group import CommandGroup
from medsight_core.errors import InputError
from training.extras import needs_training
from training.learning import app as learning

if TYPE_CHECKING:
    from training.evaluation.propagation import Labelled

app = typer.Typer(no_args_is_help=True, cls=CommandGroup)
evaluate = typer.Typer(no_args_is_help=True, help="Measure a model.")
app.add_typer(evaluate, name="eval")
app.registered_commands += learning.registered_commands


@evaluate.command()
def segmentation(
    manifest: Annotated[Path, typer.Option(help="JSONL in BiomedParse's layout, one row per mask.")],
    root: Annotated[Path, typer.Option(help="Folder that the manifest's paths start from.")],
    negatives: Annotated[Path | None, typer.Option(help="JSONL of images without the data set's targets.")] = None,
    train_manifest: Annotated[
        Path | None, typer.Option(help="Whose train split says how much was trained; default: --manifest.")
    ] = None,
    split: Annotated[str, typer.Option(help="Rows to ask about.")] = "test",
    model: Annotated[Path | None, typer.Option(help="Model folder; default: the embedded medsight-mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, cases and pictures.")] = Path("runs/eval-segmentation"),
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, spread evenly.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions per call of the engine.")] = 8,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" ...')] = "auto",
    min_train: Annotated[int, typer.Option(min=0, help="Pairs with fewer training masks do not count.")] = 20,
    apart: Annotated[list[str] | None, typer.Option(help="Data set to report apart; repeat for more.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Dice by text and by point, diagnosis recall, emission, false positives; each with a 95 % interval."""
    with needs_training():
        from training.evaluation import bootstrap, questions, report, summary
        from training.evaluation import manifest as manifests
        from training.evaluation.segmentation import run

        rows = manifests.read_manifest(manifest)
        negative_rows = manifests.read_manifest(negatives) if negatives else ()
        training_rows = manifests.read_manifest(train_manifest) if train_manifest else (*rows, *negative_rows)
        cases = questions.build_cases(rows, negative_rows, split=split, limit=limit)
        if not cases:
            splits = ", ".join(sorted({row.split for row in rows}))
            raise InputError("empty_split", f"{manifest.name} has no rows of split {split!r}.", f"It has: {splits}.")
        manifests.check_files((case.row for case in cases), root)

        report.prepare_folder(out)
        # torch takes seconds to import; whoever mistyped a path should not wait for it.
        from medsight_core.inference.engine import Engine

        engine = Engine.from_pretrained(model, device=device)
        with _progress(len(cases)) as advance:
            outcomes = run(engine, cases, root, batch=batch, on_progress=advance)
        rule = summary.Rule() if apart is None else summary.Rule(apart=tuple(apart))
        rule = summary.Rule(min_training_masks=min_train, apart=rule.apart)
        draws = bootstrap.Bootstrap(seed=seed)
        result = summary.summarise(outcomes, training_rows=training_rows, rule=rule, bootstrap=draws)
        known = bool(questions.training_masks(training_rows))
        figures: dict[str, Any] = {
            "model": {"name": engine.name, "digest": engine.digest},
            **result.to_json(),
            "settings": {
                "manifest": {"name": manifest.name, "sha256": manifests.digest(manifest)},
                "negatives": {"name": negatives.name, "sha256": manifests.digest(negatives)} if negatives else None,
                "split": split,
                "limit": limit,
                "batch": batch,
                "device": device,
                "wording": dict(questions.WORDING),
                "rule": rule.to_json(applied=known),
                "bootstrap": {**asdict(draws), "unit": "patient"},
            },
        }
        files = report.write_report(out, report=figures, outcomes=outcomes, root=root)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        typer.echo(report.markdown(figures))
        typer.echo("Written: " + ", ".join(str(file) for file in files))


@evaluate.command()
def interactive(
    manifest: Annotated[Path, typer.Option(help="JSONL in BiomedParse's layout, one row per mask.")],
    root: Annotated[Path, typer.Option(help="Folder that the manifest's paths start from.")],
    negatives: Annotated[Path | None, typer.Option(help="JSONL of images without the data set's targets.")] = None,
    split: Annotated[str, typer.Option(help="Rows to click on.")] = "test",
    model: Annotated[Path | None, typer.Option(help="Model folder; default: the embedded medsight-mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures and cases.")] = Path("runs/eval-interactive"),
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, spread evenly.")] = None,
    text: Annotated[bool, typer.Option(help="Ask by text alone as well, to compare with.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Questions by text per call of the engine.")] = 8,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" ...')] = "auto",
    min_train: Annotated[int, typer.Option(min=0, help="Pairs with fewer training masks do not count.")] = 20,
    apart: Annotated[list[str] | None, typer.Option(help="Data set to report apart; repeat for more.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Dice by text, by one to three simulated clicks and by a box; and clicks on nothing that give nothing."""
    with needs_training():
        from training.evaluation import bootstrap, interactive_summary, questions, report, summary
        from training.evaluation import interactive as clicking
        from training.evaluation import manifest as manifests
        from training.evaluation.segmentation import run

        rows = manifests.read_manifest(manifest)
        negative_rows = manifests.read_manifest(negatives) if negatives else ()
        shown = (row for row in rows if row.split == split and row.mask is not None)
        images = questions.spread(questions.by_image(shown), limit)
        if not images:
            splits = ", ".join(sorted({row.split for row in rows}))
            raise InputError("empty_split", f"{manifest.name} has no masks of split {split!r}.", f"It has: {splits}.")
        rule = summary.Rule() if apart is None else summary.Rule(apart=tuple(apart))
        rule = summary.Rule(min_training_masks=min_train, apart=rule.apart)
        without = questions.spread(questions.by_image(row for row in negative_rows if row.split == split), limit)
        empty = clicking.honest([*images, *without], rows, apart=rule.apart)
        manifests.check_files((row for some in (*images, *empty) for row in some), root)

        report.prepare_folder(out)
        # torch takes seconds to import; whoever mistyped a path should not wait for it.
        from medsight_core.inference.engine import Engine
        from medsight_core.inference.pointing import NOTHING_MARGIN
        from medsight_core.inference.session import Session

        engine = Engine.from_pretrained(model, device=device)
        masked = [row for some in images for row in some]
        cases = [questions.Case(kind="text", row=row, target=row.target or "") for row in masked] if text else []
        with _progress(len(cases) + len(masked) + len(empty) * len(clicking.BACKGROUND_SEEDS)) as advance:
            outcomes = run(engine, cases, root, batch=batch, on_progress=advance)
            begin = partial(Session, engine)
            interactions = list(clicking.click_through(begin, images, root, on_progress=advance))
            backgrounds = list(clicking.click_on_nothing(begin, empty, root, on_progress=advance))
        said = {one.case.row.mask: one.dice for one in outcomes if one.case.row.mask and one.dice is not None}
        draws = bootstrap.Bootstrap(seed=seed)
        figures: dict[str, Any] = {
            "model": {"name": engine.name, "digest": engine.digest},
            **interactive_summary.summarise(
                interactions, backgrounds, text=said, training_rows=rows, rule=rule, bootstrap=draws
            ),
            "settings": {
                "manifest": {"name": manifest.name, "sha256": manifests.digest(manifest)},
                "split": split,
                "limit": limit,
                "device": device,
                "wording": questions.WORDING["text"],
                "nothing_margin": NOTHING_MARGIN,
                "background_seeds": list(clicking.BACKGROUND_SEEDS),
                "rule": rule.to_json(applied=bool(questions.training_masks(rows))),
                "bootstrap": {**asdict(draws), "unit": "patient"},
            },
        }
        files = interactive_summary.write_report(
            out, report=figures, interactions=interactions, backgrounds=backgrounds, text=said
        )
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        typer.echo(interactive_summary.markdown(figures))
        typer.echo("Written: " + ", ".join(str(file) for file in files))


@evaluate.command()
def propagation(
    manifest: Annotated[Path | None, typer.Option(help="JSONL of volumes and their label maps.")] = None,
    volume: Annotated[list[Path] | None, typer.Option(help="A scan; repeat for more.")] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="The label map of each --volume, in their order.")] = None,
    only: Annotated[str | None, typer.Option(help="Volumes whose path holds this text.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder; default: the embedded medsight-mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("runs/eval-propagation"),
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" ...')] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """3D Dice of one click that is followed through a volume, beside a click on every slice."""
    with needs_training():
        from training.evaluation import propagation as following
        from training.evaluation import report

        pairs = _labelled(manifest, volume, labels, only)
        report.prepare_folder(out)
        from medsight_core.inference.engine import Engine
        from medsight_core.inference.session import Session

        engine = Engine.from_pretrained(model, device=device)
        with _progress(len(pairs)) as advance:
            results = list(following.follow(partial(Session, engine), pairs, on_progress=advance))
        figures: dict[str, Any] = {
            "model": {"name": engine.name, "digest": engine.digest},
            **following.summarise(results),
            "settings": {"manifest": manifest.name if manifest else None, "only": only, "device": device},
        }
        text = json.dumps(figures, indent=1) + "\n"
        files = [
            report.write_file(out / "propagation.json", "w", lambda file: file.write(text)),
            report.write_file(out / "propagation.md", "w", lambda file: file.write(following.markdown(figures))),
        ]
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        typer.echo(following.markdown(figures))
        typer.echo("Written: " + ", ".join(str(file) for file in files))


@evaluate.command()
def volumes(
    manifest: Annotated[Path | None, typer.Option(help="JSONL of volumes and their label maps.")] = None,
    volume: Annotated[list[Path] | None, typer.Option(help="A scan; repeat for more.")] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="The label map of each --volume, in their order.")] = None,
    only: Annotated[str | None, typer.Option(help="Volumes whose path holds this text.")] = None,
    plane: Annotated[str, typer.Option(help="acquired, axial, coronal or sagittal: what the model knows best.")] = (
        "acquired"
    ),
    exact: Annotated[bool, typer.Option(help="Let the language model read every slice as well, to compare.")] = True,
    model: Annotated[Path | None, typer.Option(help="Model folder; default: the embedded medsight-mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("runs/eval-volumes"),
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" ...')] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """3D Dice and time of structures asked for by text: key slices read, every slice read, or surveyed without words.

    Example: medsight eval volumes --manifest data/volumes/manifest.jsonl --only ct_abdomen
    """
    with needs_training():
        from medsight_core.imaging.planes import check_plane
        from training.evaluation import report
        from training.evaluation import volumes as measuring

        cut = check_plane(plane)
        pairs = _labelled(manifest, volume, labels, only)
        report.prepare_folder(out)
        import torch

        from medsight_core.inference.engine import Engine
        from medsight_core.inference.volumes import VolumeEngine

        engine = Engine.from_pretrained(model, device=device)
        with _progress(len(pairs)) as advance:
            results = list(measuring.measure(VolumeEngine(engine), pairs, plane=cut, exact=exact, on_progress=advance))
        figures: dict[str, Any] = {
            "model": {"name": engine.name, "digest": engine.digest},
            **measuring.summarise(results),
            "settings": {
                "manifest": manifest.name if manifest else None,
                "only": only,
                "device": str(engine.device),
                "threads": torch.get_num_threads(),
                "plane": plane,
            },
        }
        files = measuring.write_report(out, report=figures, results=results)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        typer.echo(measuring.markdown(figures))
        typer.echo("Written: " + ", ".join(str(file) for file in files))


def _labelled(
    manifest: Path | None, volume: Sequence[Path] | None, labels: Sequence[Path] | None, only: str | None
) -> list[Labelled]:
    """The scans and label maps that the options name."""
    from training.evaluation import propagation as following

    if len(volume or ()) != len(labels or ()):
        raise InputError("bad_pairs", "--volume and --labels go in pairs.", "Give one --labels for each --volume.")
    pairs = following.read_pairs(manifest) if manifest else []
    given = zip(volume or (), labels or (), strict=True)
    pairs += [following.Labelled(image=image, labels=mask, names={}) for image, mask in given]
    following.check_pairs(pairs)
    pairs = [pair for pair in pairs if only is None or only in pair.image.as_posix()]
    if not pairs:
        raise InputError("no_volumes", "There is no volume to measure on.", "Give --manifest, or --volume.")
    return pairs


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar with the time left, on the error stream and only where a person sees it."""
    from tqdm import tqdm

    with tqdm(total=total, unit="question", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


if __name__ == "__main__":
    app(prog_name="medsight")
