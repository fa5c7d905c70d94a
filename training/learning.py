"""The commands that make models: build one, train it, work adapters into it.

They stand beside those of `training.cli`, which puts them into `medsight`. Imports that take time stay inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medsight_core.errors import InputError
from training.extras import needs_training

app = typer.Typer()


@app.command()
def init(
    llm: Annotated[Path, typer.Option(help="Folder of a causal language model: Qwen3, Llama, Gemma 3, Mistral ...")],
    vision: Annotated[Path, typer.Option(help="CLIP, SigLIP or DINOv2: a folder, or a file of open_clip.")],
    out: Annotated[Path, typer.Option(help="Folder to write the untrained model into.")],
    settings: Annotated[list[str] | None, typer.Argument(help="setting=value of the model, any number.")] = None,
    modalities: Annotated[str | None, typer.Option(help="Names of the codebook's groups, with commas between.")] = None,
    codes_per_group: Annotated[int, typer.Option(min=1, help="Region codes of each modality.")] = 32,
    activation: Annotated[
        str | None, typer.Option(help="gelu or quick_gelu, for an open_clip file that does not say it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is new.")] = 0,
) -> None:
    """Build an untrained model on a language model and an image encoder, for the four stages to start from.

    Both are taken over bit by bit; the language model's vocabulary gains the region codes.

    Example: medsight init --llm models/Qwen3-8B --vision models/clip-vit-large-patch14-336 --out models/untrained-8b
    """
    if activation not in (None, "gelu", "quick_gelu"):
        raise InputError("unknown_activation", f"There is no activation {activation!r}.", "Say gelu or quick_gelu.")
    with needs_training():
        from training.initialising import MODALITIES, initialise
        from training.recipe import override_value
    values: dict[str, Any] = {}
    for setting in settings or []:
        override_value(values, setting)
    groups = MODALITIES if modalities is None else [name.strip() for name in modalities.split(",")]
    config = initialise(
        llm=llm,
        vision=vision,
        out=out,
        modalities=groups,
        codes_per_group=codes_per_group,
        activation=activation,
        settings=values,
        seed=seed,
    )
    typer.echo(
        f"Written: {out} ({config.text_config.model_type} and {config.vision_config.model_type}, "
        f"{config.num_codes} region codes for {', '.join(groups)}). It has learnt nothing yet; "
        f"now say: medsight train 1 --config 8b --run FOLDER base={out} data.root=FOLDER"
    )


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="1, 2, 3, 4, 'all', or 'export'.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.of.recipe=value, any number.")] = None,
    config: Annotated[Path | None, typer.Option(help="Recipe (YAML), or 'mini'.")] = None,
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, curves, pictures.")] = Path("runs/mini"),
    lora: Annotated[bool, typer.Option("--lora", help="Stage 4 trains adapters only, for medsight merge.")] = False,
    to: Annotated[Path | None, typer.Option(help="For 'export': folder to write the model into.")] = None,
) -> None:
    """Train a model in four stages, each resumable: region perceiver, vision to text, codebook, instructions.

    Say the same again to go on after an interruption. Curves: tensorboard --logdir RUN.

    Example: medsight train all --config mini --run runs/mini data.root=data/seg data.volumes=null

    Adapters for a model that is trained: medsight train 4 --lora --config 8b start=medsight-8b/ data.root=data/seg
    """
    with needs_training():
        from training.recipe import read_recipe
        from training.run import Run, export
    if stage == "export":
        if to is None:
            raise InputError("missing_folder", "Export needs a folder to write to.", "Say --to FOLDER.")
        source = run / "stage4" / "last"
        if not (source / "config.json").is_file():
            adapters = run / "stage4-lora" / "last"
            remedy = f"Say medsight merge {adapters} --out {to}." if adapters.is_dir() else "Train stage 4 first."
            raise InputError("missing_stage", f"There is no trained model in {source}.", remedy)
        typer.echo(f"Written to {export(source, to)}")
        return
    if stage not in ("1", "2", "3", "4", "all"):
        raise InputError("bad_stage", f"There is no stage '{stage}'.", "Say 1, 2, 3, 4, all or export.")
    recipe = read_recipe(config, overrides or [])
    if stage == "all" and recipe.get("start"):
        sentence = "start=FOLDER says what one stage starts from."
        raise InputError("bad_stage", sentence, "Name that stage instead of all.")
    if lora:
        recipe["lora"] = recipe.get("lora") or {}
    job = Run(recipe, run, lambda text: typer.echo(text, err=True))
    for number in (1, 2, 3, 4) if stage == "all" else (int(stage),):
        typer.echo(f"Trained: {job.stage(number)}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder that medsight train 4 --lora wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model into.")],
    base: Annotated[
        Path | None, typer.Option(help="The model that the adapters were trained on; default: where it was then.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="To store the weights in: bfloat16, float16 or float32.")] = "bfloat16",
) -> None:
    """Work trained adapters into the model they belong to; the outcome is an ordinary model.

    Example: medsight merge runs/8b/stage4-lora/last --out models/mine
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise InputError("bad_dtype", f"There is no type {dtype!r}.", "Say bfloat16, float16 or float32.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out_exists", f"{out} is there already and not empty.", "Name a new folder with --out.")
    with needs_training():
        from training.lora import read_base
        from training.run import export
    read_base(adapter)
    typer.echo(f"Written to {export(adapter, out, dtype=dtype, base=base)}")
