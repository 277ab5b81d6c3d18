"""The commands of ``molfun``. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from molfun.cli.flags import HelpAll, SettingsCommand, with_flags
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import PANELS, RUN, FineTuneSettings
from molfun.data.kinds.base import with_kinds

app = typer.Typer(
    name="molfun",
    help="Fine-tune molecular foundation models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Text = str | None
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings as name=value, for example encoder.d_model=64.", show_default=False
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(help="Checkpoint folder, for example runs/x/checkpoint, or a .ckpt of PET."),
]
Table = Annotated[
    str,
    typer.Option("--data", help="Table of samples; for sequences also FASTA; for atoms xyz."),
]
Weights = Annotated[Text, typer.Option("--weights", help="Base weights, if they have moved.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Kernels = Annotated[
    str,
    typer.Option("--kernels", help="Whose code runs: auto, stock (the package's own) or fast."),
]
Length = Annotated[int | None, typer.Option("--max-length", help="Crop; by default as trained.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per batch.")]
Target = Annotated[
    Text, typer.Option("--target", help="Which energy of a model of atoms that has several.")
]
Trust = Annotated[bool, typer.Option("--trust", help="You know where a .ckpt comes from.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an older --output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Plugin = Annotated[
    Text, typer.Option("--plugin", help="Module to import first, which registers your own parts.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --output.", rich_help_panel=RUN)
]
Replace = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in --output.", rich_help_panel=RUN)
]
Config = Annotated[
    Text,
    typer.Option("--config", help="YAML file of settings; flags go first.", rich_help_panel=RUN),
]
Details = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks and details.", rich_help_panel=RUN),
]


@app.command("fine-tune", cls=SettingsCommand)
@with_flags(with_kinds(FineTuneSettings), PANELS)
def fine_tune(
    overrides: Overrides = None,
    *,
    resume: Resume = False,
    overwrite: Replace = False,
    config: Config = None,
    debug: Details = False,
    help_all: HelpAll = False,
    **given: Any,
) -> None:
    """Fine-tune a model on structures with affinities, sequences with labels, or energies.

    For example:

    \b
    molfun fine-tune --demo --strategy lora --epochs 3 --output runs/demo
    molfun fine-tune --data pdbbind.csv --pdbs pdbs/ --output runs/affinity
    molfun fine-tune --backbone esm2_t6_8M_UR50D --data gb1.csv
    molfun fine-tune --config finetune.yaml --data series.csv accum=2
    molfun fine-tune --backbone pet --data x.xyz --weights pet.ckpt --trust
    molfun fine-tune --init-from runs/a/checkpoint --data x.csv --output runs/b
    """
    del help_all
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli import fine_tune as command
        from molfun.cli.sources import build, gather

        values = gather(given, overrides or [], config, resume=resume)
        settings = build(FineTuneSettings, values, config, resume=resume)
        command.run(settings, resume=resume, overwrite=overwrite, debug=debug)


@app.command()
def embed(
    sequences: Annotated[str, typer.Option("--sequences", help="FASTA (.gz) or table.")],
    checkpoint: Annotated[
        Text, typer.Option("--checkpoint", help="Use a fine-tuned model.")
    ] = None,
    backbone: Annotated[
        str, typer.Option("--backbone", help="Or a pretrained one.")
    ] = "esm2_t6_8M_UR50D",
    preset: Annotated[Text, typer.Option("--preset", help="Its architecture.")] = None,
    weights: Weights = None,
    pooling: Annotated[
        str, typer.Option("--pooling", help="mean, cls, or none for one vector per residue.")
    ] = "mean",
    layer: Annotated[int, typer.Option("--layer", help="Layer; -1 is the last.")] = -1,
    output: Annotated[
        str, typer.Option("--output", help="File to write: .npz, .h5 or .parquet.")
    ] = "embeddings.npz",
    shard_size: Annotated[
        int, typer.Option("--shard-size", help="Sequences per file; a stopped run goes on.")
    ] = 10000,
    sequence_column: Annotated[
        str, typer.Option("--sequence-column", help="Column of sequences.")
    ] = "sequence",
    id_column: Annotated[Text, typer.Option("--id-column", help="Column of ids \\[none].")] = None,
    max_length: Length = None,
    long: Annotated[
        Text, typer.Option("--long", help="Above 1,022 residues: full, crop or window \\[full].")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write representations of sequences, to use in other programs."""
    from molfun.cli.console import errors_in_one_line, set_up_logging

    with errors_in_one_line(debug=debug):
        from molfun.cli import embed as command

        set_up_logging(None, debug=debug)
        columns = {"sequence_column": sequence_column, "id_column": id_column}
        data = command.open_data(sequences, {**columns, "max_length": max_length})
        inputs = {"--sequences": sequences, "CHECKPOINT": checkpoint, "--weights": weights}
        command.check_output(output, data.ids, shard_size, inputs, overwrite=overwrite)
        model = command.open_model(
            checkpoint, backbone, preset=preset, weights=weights, long=long, device=device
        )
        command.run(
            model,
            data,
            output,
            pooling=None if pooling == "none" else pooling,
            layer=layer,
            shard_size=shard_size,
            overwrite=overwrite,
        )


@app.command(cls=SettingsCommand)
@with_flags(PretrainSettings, PANELS)
def pretrain(
    overrides: Overrides = None,
    *,
    resume: Resume = False,
    overwrite: Replace = False,
    config: Config = None,
    debug: Details = False,
    help_all: HelpAll = False,
    **given: Any,
) -> None:
    """Train a backbone on sequences or time series without labels, to fine-tune from afterwards.

    For example:

    \b
    molfun pretrain --sequences mine.fasta.gz --output runs/pre
    molfun fine-tune --weights runs/pre/weights.safetensors --backbone esm2 ...
    molfun pretrain --data series.ts encoder=transformer ssl=mae
    """
    del help_all
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli import pretrain as command
        from molfun.cli.sources import build, gather

        values = gather(given, overrides or [], config, resume=resume, pretrain=True)
        settings = build(PretrainSettings, values, config, resume=resume)
        command.run(settings, resume=resume, overwrite=overwrite, debug=debug)


@app.command()
def train(
    options: Annotated[
        str, typer.Argument(help="Options of metatrain, or settings of molfun fine-tune (YAML).")
    ],
    overrides: Overrides = None,
    trust: Annotated[
        bool | None,
        typer.Option("--trust", help="You know where a .ckpt comes from, which is a pickle."),
    ] = None,
    output: Annotated[
        Text, typer.Option("--output", help="Folder of the run \\[runs/STRATEGY].")
    ] = None,
    resume: Resume = False,
    overwrite: Replace = False,
    device: Annotated[
        Text, typer.Option("--device", help="auto, cpu, cuda or cuda:N \\[auto].")
    ] = None,
    plugin: Plugin = None,
    debug: Details = False,
) -> None:
    """Train as a file of options says, metatrain's or Molfun's own.

    For example:

    \b
    molfun train options.yaml
    molfun train options.yaml training_set=x.xyz trust=true --output runs/pet
    """
    flags = {"trust": trust, "output": output, "device": device, "plugin": plugin}
    given = {name: value for name, value in flags.items() if value is not None}
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli import fine_tune as command
        from molfun.cli.sources import build, gather_options

        values, names = gather_options(given, overrides or [], options, resume=resume)
        settings = build(FineTuneSettings, values, options, resume=resume, names=names)
        command.run(settings, resume=resume, overwrite=overwrite, debug=debug)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint folder of PET, or a .ckpt of metatrain.")
    ],
    output: Annotated[
        str, typer.Argument(help="File: .pt for ASE and other engines, .ckpt for metatrain.")
    ],
    weights: Weights = None,
    trust: Trust = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a model of atoms for other programs, with its adapters folded in."""
    from molfun.cli.console import errors_in_one_line, set_up_logging

    with errors_in_one_line(debug=debug):
        from molfun.cli import export as command

        set_up_logging(None, debug=debug)
        command.run(checkpoint, output, weights=weights, trust=trust, overwrite=overwrite)


@app.command()
@with_flags(with_kinds(FineTuneSettings), PANELS, again=True)
def predict(
    checkpoint: Checkpoint,
    data: Table,
    *,
    output: Annotated[str, typer.Option("--output", help="Table to write.")] = "predictions.csv",
    target: Target = None,
    weights: Weights = None,
    trust: Trust = False,
    device: Device = "auto",
    batch_size: Batch = 1,
    kernels: Kernels = "auto",
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Predict for every row of a table or FASTA file, from a checkpoint alone."""
    _with_model(
        "predict", checkpoint, {"data": data, **given}, plugin=plugin, debug=debug, output=output,
        overwrite=overwrite, batch_size=batch_size, target=target, weights=weights, trust=trust,
        device=device, kernels=kernels,
    )  # fmt: skip


@app.command()
@with_flags(with_kinds(FineTuneSettings), PANELS, again=True)
def evaluate(
    checkpoint: Checkpoint,
    data: Table,
    *,
    output: Annotated[Text, typer.Option("--output", help="JSON file to write.")] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", help="Draws for 95 % intervals of the metrics.")
    ] = 0,
    target: Target = None,
    weights: Weights = None,
    trust: Trust = False,
    device: Device = "auto",
    batch_size: Batch = 1,
    kernels: Kernels = "auto",
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Compare predictions with the labels of a table."""
    _with_model(
        "evaluate", checkpoint, {"data": data, **given}, plugin=plugin, debug=debug,
        output=output, overwrite=overwrite, batch_size=batch_size, target=target,
        weights=weights, trust=trust, device=device, kernels=kernels, bootstrap=bootstrap,
    )  # fmt: skip


def _with_model(
    verb: Literal["predict", "evaluate"],
    checkpoint: str,
    given: dict[str, Any],
    *,
    plugin: str | None,
    debug: bool,
    **options: Any,
) -> None:
    from molfun.cli.console import errors_in_one_line, set_up_logging

    with errors_in_one_line(debug=debug):
        if plugin is not None:
            from molfun.cli.plugins import load_plugin

            load_plugin(plugin)
        from molfun.cli import predict as command

        set_up_logging(None, debug=debug)
        command.run(verb, checkpoint, given, **options)


@app.command()
def schema(
    kind: Annotated[
        str, typer.Argument(help="Command whose file it is: fine-tune or pretrain.")
    ] = "fine-tune",
    output: Annotated[
        Text, typer.Option("--output", help="File to write; by default it is printed.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of a file of settings, with which editors complete and check it.

    For example:

    molfun schema --output molfun.schema.json

    and in the first line of the file: # yaml-language-server: $schema=molfun.schema.json
    """
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli.schema import run

        run(kind, output)


installer = typer.Typer(no_args_is_help=True)
app.add_typer(installer, name="install", help="Install what pip alone cannot.")


@installer.command("openfold")
def install_openfold(
    source: Annotated[
        Text, typer.Option("--from", help="Checkout or git URL (URL@tag), not the package index.")
    ] = None,
    python: Annotated[
        Text, typer.Option("--python", help="Interpreter to install for \\[the one of molfun].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an installed version.")] = False,
) -> None:
    """Install the openfold package without compiling anything."""
    from molfun.cli.console import errors_in_one_line, say

    with errors_in_one_line(debug=False):
        from molfun.cli.install import provide

        say(provide(python or sys.executable, source=source, force=force))


def _version(value: bool) -> None:
    if value:
        from molfun import __version__

        print(f"molfun {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune molecular foundation models."""


def main() -> None:
    """Entry point of ``molfun``."""
    app()
