"""The commands that training brings to `medsight`.

`medsight_core.cli` finds `app` through the entry point group ``medsight.commands`` and puts its commands at the top
level, so core has `medsight eval` without importing this package. Imports that take time stay inside the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medsight_core.cli.group import CommandGroup
from medsight_core.errors import InputError, MedSightError

app = typer.Typer(no_args_is_help=True, cls=CommandGroup)
evaluate = typer.Typer(no_args_is_help=True, help="Measure a model.")
app.add_typer(evaluate, name="eval")


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turns a missing package into a sentence that says which extra of MedSIGHT brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"medsight_core", "training"}:
            raise  # a defect of ours
        sentence = f"The package {error.name} is not installed, and this command needs it."
        raise MedSightError("missing_package", sentence, f"Say: pip install 'medsight[{name}]'.") from error


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
    with needs_extra("train"):
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


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar with the time left, on the error stream and only where a person sees it."""
    from tqdm import tqdm

    with tqdm(total=total, unit="question", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


if __name__ == "__main__":
    app(prog_name="medsight")


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="1, 2, 3, 4, 'all', or 'export'.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.of.recipe=value, any number.")] = None,
    config: Annotated[Path | None, typer.Option(help="Recipe (YAML), or 'mini'.")] = None,
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, curves, pictures.")] = Path("runs/mini"),
    to: Annotated[Path | None, typer.Option(help="For 'export': folder to write the model into.")] = None,
) -> None:
    """Train a model in four stages, each resumable: region perceiver, vision to text, codebook, instructions.

    Say the same again to go on after an interruption. Curves: tensorboard --logdir RUN.

    Example: medsight train all --config mini --run runs/mini data.root=data/seg
    """
    with needs_extra("train"):
        from training.recipe import read_recipe
        from training.run import Run, export
    if stage == "export":
        if to is None:
            raise InputError("missing_folder", "Export needs a folder to write to.", "Say --to FOLDER.")
        typer.echo(f"Written to {export(run / 'stage4' / 'last', to)}")
        return
    if stage not in ("1", "2", "3", "4", "all"):
        raise InputError("bad_stage", f"There is no stage '{stage}'.", "Say 1, 2, 3, 4, all or export.")
    job = Run(read_recipe(config, overrides or []), run, lambda text: typer.echo(text, err=True))
    for number in (1, 2, 3, 4) if stage == "all" else (int(stage),):
        typer.echo(f"Trained: {job.stage(number)}")
