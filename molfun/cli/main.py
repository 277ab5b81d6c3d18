"""Commands and flags. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="molfun",
    help="Fine-tune molecular foundation models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Text = str | None
DATA, MODEL, TRAINING, RUN = "Data", "Model", "Training", "Run"


def _flag(text: str, panel: str, *names: str) -> Any:
    # typer reads help as rich markup, in which [auto] would be a style
    plain = text.replace("[", "\\[")
    return typer.Option(*names, help=plain, rich_help_panel=panel, show_default=False)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings as name=value, for example encoder.d_model=64.", show_default=False
    ),
]


@app.command("fine-tune")
def fine_tune(
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None,
        _flag(
            "Table with pdb_id and affinity, or of sequences; time series; or structures of atoms "
            "(extended xyz; once a file).",
            DATA,
        ),
    ] = None,
    val: Annotated[Text, _flag("A file of its own for validation [part of --data].", DATA)] = None,
    test: Annotated[Text, _flag("A file of its own for testing [part of --data].", DATA)] = None,
    pdbs: Annotated[Text, _flag("Folder of structures {pdb_id}.cif or .pdb (.gz).", DATA)] = None,
    features: Annotated[Text, _flag("Folder of pre-computed features {pdb_id}.pkl.", DATA)] = None,
    alignments: Annotated[Text, _flag("Folder of alignments {pdb_id}/*.a3m.", DATA)] = None,
    skip_missing: Annotated[
        bool | None, _flag("Leave out rows without a structure.", DATA, "--skip-missing")
    ] = None,
    max_length: Annotated[
        int | None, _flag("Crop longer structures (around the interface).", DATA)
    ] = None,
    sequence_column: Annotated[Text, _flag("Column of sequences [sequence].", DATA)] = None,
    target_column: Annotated[
        Text, _flag("Column of labels [affinity; for sequences target].", DATA)
    ] = None,
    id_column: Annotated[Text, _flag("Column of ids [pdb_id; for sequences none].", DATA)] = None,
    mask_column: Annotated[
        Text, _flag("Column of 0 and 1 a residue: labels that count.", DATA)
    ] = None,
    layout: Annotated[
        Text, _flag("Table of time series: long (a row a time step) or wide [long].", DATA)
    ] = None,
    time_column: Annotated[Text, _flag("Its column of times [time].", DATA)] = None,
    feature_columns: Annotated[
        Text, _flag("Its columns of values, as hr,bp [all without another role].", DATA)
    ] = None,
    group_column: Annotated[
        Text,
        _flag(
            "Column of subjects, trajectories or families: --split group keeps them whole, with "
            "time series every split does [group].",
            DATA,
        ),
    ] = None,
    energy_key: Annotated[
        Text, _flag("Name of the energies of structures of atoms [energy].", DATA)
    ] = None,
    forces_key: Annotated[Text, _flag("Name of their forces [forces].", DATA)] = None,
    stress_key: Annotated[Text, _flag("Name of their stress [stress].", DATA)] = None,
    virial_key: Annotated[
        Text, _flag("Name of their virials, read as stress = -virial / volume [none].", DATA)
    ] = None,
    target_key: Annotated[
        Text, _flag("Name of another label, of a structure or each atom.", DATA)
    ] = None,
    window: Annotated[
        int | None, _flag("Cut time series into windows of so many steps.", DATA)
    ] = None,
    stride: Annotated[int | None, _flag("Steps from one to the next [window].", DATA)] = None,
    split: Annotated[
        Text, _flag("random, temporal, identity, group or column [random].", DATA)
    ] = None,
    split_column: Annotated[
        Text, _flag("Column of train, val and test, for --split column [split].", DATA)
    ] = None,
    val_frac: Annotated[float | None, _flag("Fraction for validation [0.1].", DATA)] = None,
    test_frac: Annotated[float | None, _flag("Fraction for testing [0.1].", DATA)] = None,
    backbone: Annotated[
        Text, _flag("openfold, timeseries, pet, or esm2_t6_8M_UR50D ... [openfold].", MODEL)
    ] = None,
    preset: Annotated[
        Text, _flag("Architecture [the backbone's own]; tiny for tests.", MODEL)
    ] = None,
    weights: Annotated[Text, _flag("File of pretrained weights.", MODEL)] = None,
    init_from: Annotated[
        Text, _flag("Checkpoint folder whose trained model to train on, in a new run.", MODEL)
    ] = None,
    trust: Annotated[
        bool | None,
        _flag("You know where a .ckpt comes from, which is a pickle.", MODEL, "--trust"),
    ] = None,
    long: Annotated[
        Text, _flag("Sequences above 1,022 residues: full, crop or window [full].", MODEL)
    ] = None,
    head: Annotated[
        Text,
        _flag(
            "affinity, linear, mlp, conv, energy ... [affinity; sequences mlp; pet energy].", MODEL
        ),
    ] = None,
    new_target: Annotated[
        Text, _flag("Energy to train, made if the model lacks it: energy/pbe0.", MODEL)
    ] = None,
    inherit: Annotated[
        Text, _flag("Energy whose heads a new one starts from [random].", MODEL)
    ] = None,
    old_data: Annotated[
        Text, _flag("Structures with an older energy: its errors before and after.", MODEL)
    ] = None,
    old_energy_key: Annotated[Text, _flag("Its name in that file [energy].", MODEL)] = None,
    task: Annotated[
        Text, _flag("regression, binary, multiclass, multilabel or energy [the head's].", MODEL)
    ] = None,
    level: Annotated[Text, _flag("sequence or residue: what has a label.", MODEL)] = None,
    loss: Annotated[Text, _flag("mse, mae or huber [mse].", MODEL)] = None,
    energy_weight: Annotated[float | None, _flag("Weight of energies [1].", MODEL)] = None,
    forces_weight: Annotated[float | None, _flag("Weight of forces [1].", MODEL)] = None,
    stress_weight: Annotated[float | None, _flag("Weight of stress [1].", MODEL)] = None,
    class_weight: Annotated[Text, _flag("balanced, for classes.", MODEL)] = None,
    positive_class: Annotated[
        Text, _flag("The class that F1 and AUROC are of [the second by name].", MODEL)
    ] = None,
    strategy: Annotated[
        Text,
        _flag("head_only, lora, partial, full, gradual or auto, by sample count [auto].", TRAINING),
    ] = None,
    lr: Annotated[
        float | None,
        _flag(
            "Learning rate [head_only 1e-3, lora 1e-4, else 1e-5]; the head 10x, PET's own 1x.",
            TRAINING,
        ),
    ] = None,
    lora_rank: Annotated[int | None, _flag("Rank of the adapters [8].", TRAINING)] = None,
    unfreeze_blocks: Annotated[
        int | None,
        _flag("Last blocks that train: partial [4, or all of fewer], lora [all].", TRAINING),
    ] = None,
    unfreeze_epoch: Annotated[
        int | None,
        _flag("Epochs in which the head trains alone, with any strategy [0; gradual 1].", TRAINING),
    ] = None,
    blocks_per_stage: Annotated[
        int | None,
        _flag("Blocks more that train in each epoch from then on, from the last [all].", TRAINING),
    ] = None,
    epochs: Annotated[int | None, _flag("Epochs [20].", TRAINING)] = None,
    batch_size: Annotated[
        int | None, _flag("Samples per batch [1; sequences 8; atoms 16].", TRAINING)
    ] = None,
    group_by_length: Annotated[
        bool | None,
        _flag("Put samples of similar length into a batch.", TRAINING, "--group-by-length"),
    ] = None,
    accum: Annotated[
        int | None, _flag("Batches per optimizer step [8; sequences and atoms 1].", TRAINING)
    ] = None,
    ema: Annotated[
        float | None, _flag("Decay of the weight average [0.999]; 0: off.", TRAINING)
    ] = None,
    optimizer: Annotated[Text, _flag("adamw, adam or sgd [adamw].", TRAINING)] = None,
    momentum: Annotated[float | None, _flag("Momentum of sgd [0.9].", TRAINING)] = None,
    warmup: Annotated[
        int | None, _flag("Warm-up in optimizer steps [10 % of all].", TRAINING)
    ] = None,
    scheduler: Annotated[
        Text,
        _flag("cosine, warmup_cosine, linear, constant, step or plateau [cosine].", TRAINING),
    ] = None,
    min_lr: Annotated[
        float | None, _flag("Smallest learning rate [1e-6 of the peak].", TRAINING)
    ] = None,
    step_size: Annotated[int | None, _flag("step: epochs at each rate [30].", TRAINING)] = None,
    gamma: Annotated[
        float | None, _flag("step: factor from one rate to the next [0.1].", TRAINING)
    ] = None,
    plateau_patience: Annotated[
        int | None,
        _flag("plateau: epochs without a better --monitor at one rate [10].", TRAINING),
    ] = None,
    plateau_factor: Annotated[
        float | None, _flag("plateau: factor on the rate after them [0.1].", TRAINING)
    ] = None,
    grad_clip: Annotated[
        float | None, _flag("Largest gradient norm [1.0]; 0: off.", TRAINING)
    ] = None,
    patience: Annotated[
        int | None,
        _flag("Stop after so many epochs without a better --monitor [0: off].", TRAINING),
    ] = None,
    monitor: Annotated[
        Text, _flag("What is best: val/loss, val/rmse, val/spearman ... [val/loss].", TRAINING)
    ] = None,
    weight_decay: Annotated[float | None, _flag("Weight decay [0.01].", TRAINING)] = None,
    amp: Annotated[
        bool | None, _flag("Mixed precision on GPUs [on].", TRAINING, "--amp/--no-amp")
    ] = None,
    precision: Annotated[
        Text, _flag("fp32, bf16 or fp16 [fp32 on CPUs; bf16 or fp16 on GPUs].", TRAINING)
    ] = None,
    output: Annotated[Text, _flag("Folder of the run [runs/STRATEGY].", RUN)] = None,
    resume: Annotated[bool, _flag("Continue the run in --output.", RUN, "--resume")] = False,
    overwrite: Annotated[bool, _flag("Replace the run in --output.", RUN, "--overwrite")] = False,
    config: Annotated[Text, _flag("YAML file of settings; flags go first.", RUN)] = None,
    plugin: Annotated[
        Text, _flag("Module to import first, which registers parts of your own.", RUN)
    ] = None,
    device: Annotated[Text, _flag("auto, cpu, cuda or cuda:N [auto].", RUN)] = None,
    kernels: Annotated[
        Text, _flag("Whose code runs: auto, stock (the package's) or fast [auto].", RUN)
    ] = None,
    seed: Annotated[int | None, _flag("Seed of split, order, weights, dropout [42].", RUN)] = None,
    workers: Annotated[int | None, _flag("Processes that load data [0].", RUN)] = None,
    cache: Annotated[
        Text, _flag("Cache of what is frozen: auto, memory, disk, off [auto].", RUN)
    ] = None,
    cache_dir: Annotated[
        Text, _flag("Its folder, which runs may share [OUTPUT/cache].", RUN)
    ] = None,
    cache_memory_gb: Annotated[float | None, _flag("Entries kept in memory [4].", RUN)] = None,
    cache_disk_gb: Annotated[
        float | None, _flag("Largest size of the folder [all but 1 GB of the disk].", RUN)
    ] = None,
    cache_precision: Annotated[
        Text, _flag("float32, or bfloat16 for half the size [float32].", RUN)
    ] = None,
    demo: Annotated[
        bool | None, _flag("Synthetic data: no files, weights or GPU needed.", RUN, "--demo")
    ] = None,
    demo_samples: Annotated[int | None, _flag("Samples of the demo [8].", RUN)] = None,
    demo_seq_len: Annotated[int | None, _flag("Their length [32].", RUN)] = None,
    debug: Annotated[bool, _flag("Show tracebacks and details.", RUN, "--debug")] = False,
) -> None:
    """Fine-tune a model on structures with affinities, sequences with labels, or energies.

    For example:

    molfun fine-tune --demo --strategy lora --epochs 3 --output runs/demo

    molfun fine-tune --data pdbbind.csv --pdbs pdbs/ --output runs/affinity

    molfun fine-tune --backbone esm2_t6_8M_UR50D --data gb1.csv

    molfun fine-tune --config finetune.yaml --data series.csv accum=2

    molfun fine-tune --backbone pet --data x.xyz --weights pet.ckpt --trust

    molfun fine-tune --init-from runs/a/checkpoint --data x.csv --output runs/b
    """
    given = {k: v for k, v in locals().items() if v is not None and k not in _NO_SETTINGS}
    if data is not None and len(data) < 2:
        given["data"] = "".join(data) or None
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli import fine_tune as command
        from molfun.cli.settings import FineTuneSettings

        stored = _stored(given, config, overrides, plugin, resume=resume)
        stored = _as_initialised({**stored, **given}) | stored
        settings = _resolve(FineTuneSettings, given, stored, config)
        _spare(config, settings.output_dir, resume=resume)
        command.run(settings, resume=resume, overwrite=overwrite, debug=debug)


Checkpoint = Annotated[
    str,
    typer.Argument(help="Checkpoint folder, for example runs/x/checkpoint, or a .ckpt of PET."),
]
Table = Annotated[
    str,
    typer.Option("--data", help="Table of samples; for sequences also FASTA; for atoms xyz."),
]
Pdbs = Annotated[Text, typer.Option("--pdbs", help="Folder of structures.")]
Features = Annotated[Text, typer.Option("--features", help="Folder of pre-computed features.")]
Alignments = Annotated[Text, typer.Option("--alignments", help="Folder of alignments.")]
Weights = Annotated[Text, typer.Option("--weights", help="Base weights, if they have moved.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Kernels = Annotated[
    str, typer.Option("--kernels", help="Whose code runs: auto, stock (the package's) or fast.")
]
Length = Annotated[int | None, typer.Option("--max-length", help="Crop; by default as trained.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per batch.")]
IdColumn = Annotated[Text, typer.Option("--id-column", help="Column of ids, as in training.")]
SequenceColumn = Annotated[
    Text, typer.Option("--sequence-column", help="Column of sequences, as in training.")
]
TargetColumn = Annotated[
    Text, typer.Option("--target-column", help="Column of labels, as in training.")
]
EnergyKey = Annotated[Text, typer.Option("--energy-key", help="Name of energies, as in training.")]
ForcesKey = Annotated[Text, typer.Option("--forces-key", help="Name of forces, as in training.")]
StressKey = Annotated[Text, typer.Option("--stress-key", help="Name of stress, as in training.")]
VirialKey = Annotated[
    Text, typer.Option("--virial-key", help="Name of virials (eV) in place of a stress.")
]
TargetKey = Annotated[
    Text, typer.Option("--target-key", help="Name of another label, as in training.")
]
Skip = Annotated[bool, typer.Option("--skip-missing", help="Leave out rows without a structure.")]
Target = Annotated[
    Text, typer.Option("--target", help="Which energy of a model of atoms that has several.")
]
Trust = Annotated[bool, typer.Option("--trust", help="You know where a .ckpt comes from.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an older --output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Plugin = Annotated[
    Text, typer.Option("--plugin", help="Module to import first, which registers your own parts.")
]


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
        str, typer.Option("--pooling", help="mean, cls, or none for one vector a residue.")
    ] = "mean",
    layer: Annotated[int, typer.Option("--layer", help="Layer; -1 is the last.")] = -1,
    output: Annotated[
        str, typer.Option("--output", help="File to write: .npz, .h5 or .parquet.")
    ] = "embeddings.npz",
    shard_size: Annotated[
        int, typer.Option("--shard-size", help="Sequences a file; a stopped run goes on.")
    ] = 10000,
    sequence_column: Annotated[str, typer.Option("--sequence-column")] = "sequence",
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
        from molfun.cli.settings import with_long
        from molfun.data.kinds.sequences import Sequences
        from molfun.errors import ConfigError
        from molfun.models.structure import MolfunStructureModel

        set_up_logging(None, debug=debug)
        settings = Sequences.settings.build(
            {"sequence_column": sequence_column, "id_column": id_column, "max_length": max_length}
        )
        data = Sequences().open_unlabelled(sequences, settings)
        inputs = {"--sequences": sequences, "CHECKPOINT": checkpoint, "--weights": weights}
        command.check_output(output, data.ids, shard_size, inputs, overwrite=overwrite)
        arguments = with_long({}, long)
        if checkpoint is not None and long is not None:
            raise ConfigError("--long is for --backbone; a checkpoint keeps its own.")
        model = (
            MolfunStructureModel(
                backbone,
                config=preset,
                weights=weights,
                device=device,
                backbone_config=arguments,
            )
            if checkpoint is None
            else MolfunStructureModel.from_checkpoint(checkpoint, weights=weights, device=device)
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


@app.command()
def pretrain(
    overrides: Overrides = None,
    sequences: Annotated[Text, _flag("FASTA (.gz) or table of sequences.", DATA)] = None,
    data: Annotated[Text, _flag("Or a file of time series.", DATA)] = None,
    layout: Annotated[
        Text, _flag("Table of time series: long (a row a time step) or wide [long].", DATA)
    ] = None,
    id_column: Annotated[Text, _flag("Its column of ids [id].", DATA)] = None,
    time_column: Annotated[Text, _flag("Its column of times [time].", DATA)] = None,
    feature_columns: Annotated[
        Text, _flag("Its columns of values, as hr,bp [all without another role].", DATA)
    ] = None,
    group_column: Annotated[Text, _flag("Its column of subjects [group].", DATA)] = None,
    target_column: Annotated[
        Text, _flag("Its column of labels, which is left out [target].", DATA)
    ] = None,
    window: Annotated[int | None, _flag("Cut time series into such windows.", DATA)] = None,
    stride: Annotated[int | None, _flag("Steps from one to the next [window].", DATA)] = None,
    val: Annotated[Text, _flag("The same for validation.", DATA)] = None,
    val_frac: Annotated[
        float | None,
        _flag("Fraction for it without --val [0.01; series 0.1, at least 16].", DATA),
    ] = None,
    sequence_column: Annotated[Text, _flag("Column of sequences [sequence].", DATA)] = None,
    max_length: Annotated[int | None, _flag("Crop longer sequences [512].", DATA)] = None,
    backbone: Annotated[Text, _flag("Backbone [esm2_t6_8M_UR50D].", MODEL)] = None,
    preset: Annotated[Text, _flag("Architecture, as esm2_t2_d64_h4.", MODEL)] = None,
    weights: Annotated[Text, _flag("File of weights to go on from.", MODEL)] = None,
    long: Annotated[
        Text, _flag("Sequences above 1,022 residues: full, crop or window [full].", MODEL)
    ] = None,
    objective: Annotated[Text, _flag("Objective [masked_lm; mae for series].", TRAINING)] = None,
    lr: Annotated[float | None, _flag("Learning rate [4e-4].", TRAINING)] = None,
    epochs: Annotated[int | None, _flag("Epochs [10, without --max-steps].", TRAINING)] = None,
    max_steps: Annotated[int | None, _flag("Optimizer steps.", TRAINING)] = None,
    batch_size: Annotated[int | None, _flag("Sequences per batch [16].", TRAINING)] = None,
    accum: Annotated[int | None, _flag("Batches per optimizer step [1].", TRAINING)] = None,
    ema: Annotated[float | None, _flag("Decay of the weight average [0: off].", TRAINING)] = None,
    optimizer: Annotated[Text, _flag("adamw, adam or sgd [adamw].", TRAINING)] = None,
    warmup: Annotated[int | None, _flag("Warm-up in steps [5 % of all].", TRAINING)] = None,
    scheduler: Annotated[
        Text,
        _flag("cosine, warmup_cosine, linear, constant, step or plateau [cosine].", TRAINING),
    ] = None,
    grad_clip: Annotated[float | None, _flag("Largest gradient norm [1.0].", TRAINING)] = None,
    weight_decay: Annotated[float | None, _flag("Weight decay [0.01].", TRAINING)] = None,
    precision: Annotated[Text, _flag("fp32, bf16 or fp16 [as for fine-tune].", TRAINING)] = None,
    save_every_steps: Annotated[
        int | None, _flag("Write the state so often, besides every epoch.", RUN)
    ] = None,
    output: Annotated[Text, _flag("Folder of the run [runs/pretrain].", RUN)] = None,
    resume: Annotated[bool, _flag("Continue the run in --output.", RUN, "--resume")] = False,
    overwrite: Annotated[bool, _flag("Replace the run in --output.", RUN, "--overwrite")] = False,
    config: Annotated[Text, _flag("YAML file of settings; flags go first.", RUN)] = None,
    plugin: Annotated[
        Text, _flag("Module to import first, which registers parts of your own.", RUN)
    ] = None,
    device: Annotated[Text, _flag("auto, cpu, cuda or cuda:N [auto].", RUN)] = None,
    seed: Annotated[int | None, _flag("Seed of split, order, weights, masks [42].", RUN)] = None,
    workers: Annotated[int | None, _flag("Processes that load data [0].", RUN)] = None,
    debug: Annotated[bool, _flag("Show tracebacks and details.", RUN, "--debug")] = False,
) -> None:
    """Train a backbone on sequences or time series without labels, to fine-tune from afterwards.

    For example:

    molfun pretrain --sequences mine.fasta.gz --output runs/pre

    molfun fine-tune --weights runs/pre/weights.safetensors --backbone esm2 ...

    molfun pretrain --data series.ts encoder=transformer ssl=mae
    """
    given = {k: v for k, v in locals().items() if v is not None and k not in _NO_SETTINGS}
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli import pretrain as command

        stored = _stored(given, config, overrides, plugin, resume=resume, pretrain=True)
        settings = _resolve(command.PretrainSettings, given, stored, config)
        _spare(config, settings.output, resume=resume)
        command.run(settings, resume=resume, overwrite=overwrite, debug=debug)


_NO_SETTINGS = ("config", "options", "resume", "overwrite", "debug", "overrides")


def _resolve(
    kind: Any,
    given: dict[str, Any],
    stored: dict[str, Any],
    config: str | None,
    names: dict[str, str] | None = None,
) -> Any:
    """What was stored, then the flags; `names` are those of the settings in the file."""
    return kind.build({**stored, **given}, source=config or "command line", names=names)


def _as_initialised(values: dict[str, Any]) -> dict[str, Any]:
    """Backbone, head, task and names of columns of the checkpoint that a run starts from."""
    if values.get("init_from") is None:
        return {}
    from molfun.cli.settings import FineTuneSettings
    from molfun.data.kinds.base import with_kinds
    from molfun.runs.checkpoint import read_meta

    meta = read_meta(values["init_from"])
    parts = {"backbone": meta.backbone, "head": meta.head, "task": meta.task}
    columns = {
        name: meta.data[name]
        for name, field in with_kinds(FineTuneSettings).model_fields.items()
        if name.endswith(("_column", "_columns", "_key"))
        and meta.data.get(name) not in (None, field.default)
    }
    return {**columns, **{name: part["name"] for name, part in parts.items()}}


def _spare(config: str | None, output: Any, *, resume: bool) -> None:
    """Refuse to write the settings of a run over the file that they are read from."""
    if config is not None and not resume:
        from molfun._paths import as_path
        from molfun.cli.outputs import refuse_inputs_of_run

        refuse_inputs_of_run(as_path(output), ["config.yaml"], {"--config": config})


def _stored(
    given: dict[str, Any],
    config: str | None,
    overrides: list[str] | None,
    plugin: str | None,
    *,
    resume: bool,
    pretrain: bool = False,
) -> dict[str, Any]:
    """Settings of the run being resumed, then those of the file and the overrides."""
    from molfun._paths import as_path
    from molfun.cli.places import as_started
    from molfun.config import read_yaml

    values: dict[str, Any] = {}
    stored = as_path(given.get("output") or ".") / "config.yaml"
    if resume and "output" in given:
        if os.path.isfile(stored):  # noqa: PTH113  # no error on a name that cannot be
            values.update(as_started(read_yaml(stored), stored.parent, _settings(pretrain)))
        elif not (config or overrides or {"data", "sequences", "demo"} & given.keys()):
            from molfun.errors import RunError

            raise RunError(
                f"Nothing to resume: {stored} does not exist, so {given['output']} holds no run "
                f"that got beyond its set-up. Look how --output was spelt, or repeat the settings "
                f"of the run: --resume then starts it."
            )
    if plugin is not None or overrides or config is not None:
        from molfun.cli.sections import load_plugin, read_settings

        if plugin is not None:
            load_plugin(plugin)
        values.update(read_settings(config, overrides or [], pretrain=pretrain))
    if plugin is None and values.get("plugin") is not None:
        from molfun.cli.sections import allow_plugin

        allow_plugin(values["plugin"], config or stored, overrides or [], trust="trust" in given)
        _load(values["plugin"])
    return values


def _settings(pretrain: bool) -> Any:
    from molfun.cli.pretrain import PretrainSettings
    from molfun.cli.settings import FineTuneSettings
    from molfun.data.kinds.base import with_kinds

    return PretrainSettings if pretrain else with_kinds(FineTuneSettings)


def _load(plugin: str | None) -> None:
    if plugin is not None:
        from molfun.cli.sections import load_plugin

        load_plugin(plugin)


@app.command()
def train(
    options: Annotated[
        str, typer.Argument(help="Options of metatrain, or settings of molfun fine-tune (YAML).")
    ],
    overrides: Overrides = None,
    trust: Annotated[
        bool | None,
        _flag("You know where a .ckpt comes from, which is a pickle.", MODEL, "--trust"),
    ] = None,
    output: Annotated[Text, _flag("Folder of the run [runs/STRATEGY].", RUN)] = None,
    resume: Annotated[bool, _flag("Continue the run in --output.", RUN, "--resume")] = False,
    overwrite: Annotated[bool, _flag("Replace the run in --output.", RUN, "--overwrite")] = False,
    device: Annotated[Text, _flag("auto, cpu, cuda or cuda:N [auto].", RUN)] = None,
    plugin: Annotated[
        Text, _flag("Module to import first, which registers parts of your own.", RUN)
    ] = None,
    debug: Annotated[bool, _flag("Show tracebacks and details.", RUN, "--debug")] = False,
) -> None:
    """Train as a file of options says, metatrain's or Molfun's own.

    For example:

    molfun train options.yaml

    molfun train options.yaml training_set=x.xyz trust=true --output runs/pet
    """
    given = {k: v for k, v in locals().items() if v is not None and k not in _NO_SETTINGS}
    from molfun.cli.console import errors_in_one_line

    with errors_in_one_line(debug=debug):
        from molfun.cli import fine_tune as command
        from molfun.cli.console import say
        from molfun.cli.options import NAMES, translate
        from molfun.cli.settings import FineTuneSettings
        from molfun.config import read_yaml
        from molfun.models.sections import apply_overrides

        values, names = apply_overrides(read_yaml(options), overrides or []), None
        if "architecture" in values:
            _load(plugin)
            found = translate(values, source=options)
            stored, names = found.settings, NAMES
            for note in found.notes:
                say(f"Note: {note}")
        else:
            stored = _stored(given, options, overrides, plugin, resume=resume)
        settings = _resolve(FineTuneSettings, given, stored, options, names)
        _spare(options, settings.output_dir, resume=resume)
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
def predict(
    checkpoint: Checkpoint,
    data: Table,
    pdbs: Pdbs = None,
    features: Features = None,
    alignments: Alignments = None,
    output: Annotated[str, typer.Option("--output", help="Table to write.")] = "predictions.csv",
    id_column: IdColumn = None,
    sequence_column: SequenceColumn = None,
    target_column: TargetColumn = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    target_key: TargetKey = None,
    target: Target = None,
    weights: Weights = None,
    trust: Trust = False,
    device: Device = "auto",
    max_length: Length = None,
    batch_size: Batch = 1,
    skip_missing: Skip = False,
    kernels: Kernels = "auto",
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Predict for every row of a table or FASTA file, from a checkpoint alone."""
    _with_model(
        "predict", checkpoint, data, pdbs, features, alignments, output, weights, device,
        max_length, batch_size, kernels, skip_missing=skip_missing, debug=debug, plugin=plugin,
        trust=trust, target=target, overwrite=overwrite, columns={
            "id_column": id_column, "sequence_column": sequence_column,
            "target_column": target_column, "energy_key": energy_key, "forces_key": forces_key,
            "stress_key": stress_key, "virial_key": virial_key, "target_key": target_key,
        },
    )  # fmt: skip


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Table,
    pdbs: Pdbs = None,
    features: Features = None,
    alignments: Alignments = None,
    output: Annotated[Text, typer.Option("--output", help="JSON file to write.")] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", help="Draws for 95 % intervals of the metrics.")
    ] = 0,
    id_column: IdColumn = None,
    sequence_column: SequenceColumn = None,
    target_column: TargetColumn = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    target_key: TargetKey = None,
    target: Target = None,
    weights: Weights = None,
    trust: Trust = False,
    device: Device = "auto",
    max_length: Length = None,
    batch_size: Batch = 1,
    skip_missing: Skip = False,
    kernels: Kernels = "auto",
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Compare predictions with the labels of a table."""
    _with_model(
        "evaluate", checkpoint, data, pdbs, features, alignments, output, weights, device,
        max_length, batch_size, kernels, skip_missing=skip_missing, debug=debug, plugin=plugin,
        trust=trust, target=target, overwrite=overwrite, columns={
            "id_column": id_column, "sequence_column": sequence_column,
            "target_column": target_column, "energy_key": energy_key, "forces_key": forces_key,
            "stress_key": stress_key, "virial_key": virial_key, "target_key": target_key,
        }, bootstrap=bootstrap,
    )  # fmt: skip


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


def _with_model(
    verb: Any,
    checkpoint: str,
    data: str,
    pdbs: str | None,
    features: str | None,
    alignments: str | None,
    output: str | None,
    weights: str | None,
    device: str,
    max_length: int | None,
    batch_size: int,
    kernels: Any,
    *,
    skip_missing: bool,
    trust: bool,
    target: str | None,
    overwrite: bool,
    debug: bool,
    columns: dict[str, str | None],
    plugin: str | None,
    **options: Any,
) -> None:
    from molfun.cli.console import errors_in_one_line, set_up_logging

    with errors_in_one_line(debug=debug):
        _load(plugin)
        from molfun.cli import predict as command

        set_up_logging(None, debug=debug)
        given = {
            "data": data,
            "pdbs": pdbs,
            "features": features,
            "alignments": alignments,
            "max_length": max_length,
            "skip_missing": skip_missing or None,
            **columns,
        }
        command.run(
            verb,
            checkpoint,
            {name: value for name, value in given.items() if value is not None},
            output=output,
            overwrite=overwrite,
            batch_size=batch_size,
            target=target,
            weights=weights,
            trust=trust,
            device=device,
            kernels=kernels,
            **options,
        )


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


if __name__ == "__main__":
    main()
