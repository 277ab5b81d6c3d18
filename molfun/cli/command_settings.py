"""Settings of commands that are not stored in a file; those of a run are in `settings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import field_validator

from molfun.cli.shared_settings import (
    DATA,
    DEVICE,
    KERNELS,
    MODEL,
    NUM_NODES,
    PLUGIN,
    RUN,
    TRUST,
    Kernels,
    StartSettings,
    counted_devices,
)
from molfun.config import Settings, option
from molfun.data.kinds.sequences import SequenceInputs
from molfun.data.kinds.structures import PLDDT_HELP, PlddtBelow
from molfun.parallel.started import Devices
from molfun.registry import BACKBONES

CHECKPOINT = "Checkpoint folder, for example runs/x/checkpoint, or a .ckpt of PET."
OVERWRITE = option(False, "Replace an older --output.", panel=RUN)
PRECISION = option(
    None, "{choices}; auto: bf16 where the device has units for it.", panel=MODEL,
    shown="as trained",
)  # fmt: skip
WEIGHTS = option(None, "Base weights, if they have moved.", panel=MODEL, path=True)


class Command(Settings):
    """Settings that every command has."""

    debug: bool = option(False, "Show tracebacks and details.", panel=RUN)

    @classmethod
    def take(cls, given: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Build settings from the flags of this class, and return the remaining flags with them."""
        # the rest belongs to the data kinds, whose settings are not known to this class
        own = {name: given[name] for name in given if name in cls.model_fields}
        rest = {name: given[name] for name in given if name not in own}
        names = {name: f"--{name.replace('_', '-')}" for name in own}
        return cls.build(own, source="command line", names=names), rest


class SpreadCommand(Command):
    """Settings of commands that deal their samples to several processes."""

    device: str = DEVICE
    devices: Devices | None = option(
        None, "Processes per machine among which samples are dealt; auto: all GPUs.", panel=RUN,
        shown="1, or those of torchrun and srun",
    )  # fmt: skip
    num_nodes: int = NUM_NODES

    @field_validator("devices", mode="before")
    @classmethod
    def _are_devices(cls, given: Any) -> Any:
        return counted_devices(given)


class RunOptions(Command):
    """Options of the start of a run, which are not part of its settings."""

    overrides: list[str] = option(
        list, "Settings as name=value, for example encoder.d_model=64.", argument=True
    )
    resume: bool = option(False, "Continue the run in --output.", panel=RUN)
    overwrite: bool = option(False, "Replace the run in --output.", panel=RUN)


class FileOptions(RunOptions):
    """Options of the start of a run whose settings may be in a file."""

    config: str | None = option(None, "YAML file of settings; flags go first.", panel=RUN)
    slurm: str | None = option(
        None, "Submit a job to SLURM: partition=gpu,nodes=2,gpus=8,time=24:00:00; dry-run prints "
        "its script.", panel=RUN, hidden=True,
    )  # fmt: skip


class TuneSettings(Command):
    """Settings of ``molfun tune``: base, space, and how it is searched."""

    overrides: list[str] = option(
        list, "Settings of all trials as name=value, for example epochs=10.", argument=True
    )
    config: str | None = option(
        None, "YAML file of settings of molfun fine-tune, for what no trial draws.", panel=RUN,
        path=True,
    )  # fmt: skip
    space: str | None = option(
        None, "YAML file that maps settings to ranges or choices.", panel=RUN, path=True
    )
    output: str = option(
        "runs/tune", "Folder of the study; one that it holds goes on, alone or with others.",
        panel=RUN,
    )  # fmt: skip
    trials: int | None = option(
        None, "Trials of the study, those of earlier starts included.", panel=RUN,
        shown="as before, else 50", ge=1,
    )  # fmt: skip
    workers: int = option(1, "Processes that run trials here.", panel=RUN, ge=1)
    folds: int | None = option(
        None, "Folds of the rows that are no test rows, of which each trial validates all.",
        panel=DATA, shown="none: one validation part", ge=2,
    )  # fmt: skip
    sampler: Literal["tpe", "random"] = option(
        "tpe", "How settings are drawn: {choices}.", panel=RUN
    )
    pruning: Literal["median", "off"] = option(
        "median", "Trials that end early: {choices} (median: worse than half of the others).",
        panel=RUN,
    )  # fmt: skip
    study_seed: int = option(0, "Seed of the draws.", panel=RUN, ge=0, lt=2**63)
    report: bool = option(
        True, "Write report.html at the end.", panel=RUN, names=("--report/--no-report",)
    )
    plugin: str | None = PLUGIN


class TrainOptions(RunOptions):
    """Options of the start of a run whose settings are in a file of options."""

    options: str = option(
        ..., "Options of metatrain, or settings of molfun fine-tune (YAML).", argument=True
    )


class TrainFlags(StartSettings):
    """Settings of a run that ``molfun train`` has flags for."""

    trust: bool = TRUST


class EmbedSettings(SpreadCommand, SequenceInputs):
    """Settings of ``molfun embed``: sequences, model and output."""

    sequences: str = option(
        ..., "FASTA (.gz) or table; Arrow or Parquet, also a folder of files.", panel=DATA,
        path=True,
    )  # fmt: skip
    id_column: str | None = option(None, "Column of ids.", panel=DATA, shown="none")
    max_length: int | None = option(None, "Crop; by default as trained.", panel=DATA)
    cache_dir: str | None = option(
        None, "Folder for unpacked copies of Parquet files.", panel=DATA,
        shown=".molfun beside each", hidden=True, path=True,
    )  # fmt: skip
    checkpoint: str | None = option(None, "Use a fine-tuned model.", panel=MODEL, path=True)
    backbone: str = option("esm2_t6_8M_UR50D", "Or a pretrained one.", panel=MODEL)
    preset: str | None = option(None, "Its architecture.", panel=MODEL)
    weights: str | None = WEIGHTS
    pooling: str = option(
        "mean", "mean, cls, or none for one vector per residue.", panel=MODEL,
        choices=lambda: ("mean", "cls", "none"),
    )  # fmt: skip
    layer: int = option(-1, "Layer; -1 is the last.", panel=MODEL)
    precision: Literal["auto", "fp32", "bf16"] | None = PRECISION
    output: str = option("embeddings.npz", "File to write: .npz, .h5 or .parquet.", panel=RUN)
    shard_size: int = option(10000, "Sequences per file; a stopped run goes on.", panel=RUN)
    overwrite: bool = OVERWRITE


class ScanSettings(Command):
    """Settings of ``molfun scan``: a protein, its variants, the model and the output."""

    checkpoint: str | None = option(
        None, "Checkpoint folder: predict with its head. Without it, score with --backbone.",
        argument=True,
    )  # fmt: skip
    sequence: str | None = option(None, "Wild type: a FASTA file, or its letters.", panel=DATA)
    pdb: str | None = option(
        None, "Wild type: a structure, whose letters SaProt reads.", panel=DATA, path=True
    )
    chain: str | None = option(None, "Its chain.", panel=DATA, shown="the only one")
    variants: str | None = option(
        None, "Names such as A24G,A24G:K31E, or a table of them.", panel=DATA,
        shown="all single substitutions",
    )  # fmt: skip
    mutant_column: str = option("mutant", "Column of names in that table.", panel=DATA)
    offset: int = option(0, "Number of the first residue in names, minus 1.", panel=DATA)
    backbone: str = option(
        "esm2_t6_8M_UR50D", "Protein language model.", panel=MODEL, choices=BACKBONES.names
    )
    preset: str | None = option(None, "Its architecture.", panel=MODEL, shown="its own")
    weights: str | None = option(None, "File or folder of its weights.", panel=MODEL, path=True)
    long: Literal["full", "crop", "window"] | None = option(
        None, "Long sequences: {choices}.", panel=MODEL, shown="full"
    )
    plddt_below: PlddtBelow = option(
        None, PLDDT_HELP, panel=MODEL
    )  # fmt: skip
    method: Literal["masked_marginal", "wt_marginal", "mutant_marginal", "pseudo_perplexity"] = (
        option("masked_marginal", "{choices}.", panel=MODEL)
    )
    zero_shot: bool = option(
        False, "With CHECKPOINT: add the score of its language model.", panel=MODEL
    )
    coverage: float | None = option(
        None, "With an ensemble: add intervals that hold the label this often.", panel=MODEL,
        shown="none; 0.9 is usual", gt=0, lt=1,
    )  # fmt: skip
    output: str = option("scan.csv", "Table to write.", panel=RUN)
    figure: str | None = option(
        None, "Heat map of all single substitutions: .svg, .png or .pdf; none for no figure.",
        panel=RUN, shown="OUTPUT with .svg",
    )  # fmt: skip
    batch_tokens: int = option(4096, "Tokens per pass.", panel=RUN, ge=1)
    precision: Literal["auto", "fp32", "bf16"] | None = PRECISION
    device: str = DEVICE
    overwrite: bool = OVERWRITE


class FoldSettings(SpreadCommand):
    """Settings of ``molfun fold``: sequences or structures, model and output."""

    checkpoint: str | None = option(None, CHECKPOINT, argument=True)
    sequences: str | None = option(
        None, "FASTA; A:B, or several records of one id, are chains.", panel=DATA, path=True
    )
    data: str | None = option(
        None, "Table of sequences, or with --pdbs of ids.", panel=DATA, path=True
    )
    sequence_column: str = option("sequence", "Column of sequences.", panel=DATA)
    id_column: str | None = option(None, "Column of ids.", panel=DATA, shown="pdb_id with --pdbs")
    pdbs: str | None = option(
        None, "Folder of structures whose sequences, chains and numbers are used; alone, all.",
        panel=DATA, path=True,
    )  # fmt: skip
    alignments: str | None = option(None, "Folder of alignments {id}/*.a3m.", panel=DATA, path=True)
    backbone: str = option("openfold", "Base model, without CHECKPOINT.", panel=MODEL)
    preset: str | None = option(None, "Its architecture.", panel=MODEL)
    weights: str | None = option(None, "File of its weights.", panel=MODEL, path=True)
    recycles: int = option(3, "Recycling passes before the last.", panel=MODEL, ge=0)
    recycle_tolerance: float | None = option(
        None, "End recycling below this change of CA distances (angstrom).", panel=MODEL, gt=0,
        shown="none",
    )  # fmt: skip
    seed: int = option(0, "Seed of the choice of alignment rows.", panel=MODEL, ge=0, lt=2**63)
    precision: Literal["auto", "fp32", "bf16"] | None = PRECISION
    output: str = option("folded", "Folder to write.", panel=RUN)
    unify_chains: bool = option(False, "Write all chains as one, numbered through.", panel=RUN)
    plots: bool = option(
        True, "Draw pLDDT and predicted aligned error.", panel=RUN, names=("--plots/--no-plots",)
    )
    shard_size: int = option(1000, "Structures per folder; a stopped run goes on.", panel=RUN)
    kernels: Kernels = KERNELS
    overwrite: bool = OVERWRITE


class ScoreSettings(Command):
    """Settings of ``molfun score``: the structures, and the files to write."""

    predicted: str = option(..., "Predicted structure, or a folder of them.", argument=True)
    reference: str = option(
        ..., "Reference, or a folder of files of the same names.", argument=True
    )
    output: str | None = option(None, "Table of scores to write (CSV).", panel=RUN)
    residues: str | None = option(None, "Table of scores per residue to write (CSV).", panel=RUN)
    overwrite: bool = OVERWRITE


class ExportSettings(Command):
    """Settings of ``molfun export``: the model, and the file to write."""

    checkpoint: str = option(..., "Checkpoint folder, or a .ckpt of metatrain.", argument=True)
    output: str = option(
        ..., "File: .pt for ASE and other engines, .ckpt for metatrain; or a folder.", argument=True
    )
    format: Literal["auto", "hf"] = option(
        "auto", "hf: a Hugging Face folder of a protein language model, without the head.",
        panel=RUN, shown="by the ending",
    )  # fmt: skip
    weights: str | None = WEIGHTS
    trust: bool = TRUST
    overwrite: bool = OVERWRITE


class TrainedModel(SpreadCommand):
    """Settings of commands that run a trained model on samples."""

    checkpoint: str = option(..., CHECKPOINT, argument=True)
    data: str | None = option(
        None, "Table of samples; for sequences also FASTA; for atoms xyz.", panel=DATA,
        shown="--pdbs of a model of structures",
    )  # fmt: skip
    training_data: str | None = option(
        None, "Training table or run: counts its rows in --data; predict adds the nearest one, "
        "evaluate compares with baselines of it.",
        panel=DATA,
    )  # fmt: skip
    target: str | None = option(
        None, "Which energy of a model of atoms that has several.", panel=MODEL
    )
    weights: str | None = WEIGHTS
    trust: bool = TRUST
    batch_size: int = option(1, "Samples per batch.", panel=RUN, ge=1)
    kernels: Kernels = KERNELS
    overwrite: bool = OVERWRITE
    plugin: str | None = PLUGIN


class PredictSettings(TrainedModel):
    """Settings of ``molfun predict``."""

    coverage: float | None = option(
        None, "Add intervals that hold the label this often, of an ensemble of molfun cv.",
        panel=MODEL, shown="none; 0.9 is usual", gt=0, lt=1,
    )  # fmt: skip
    output: str = option("predictions.csv", "Table to write.", panel=RUN)
    structures: str | None = option(
        None, "Folder for the predicted structures that the predictions were read from.", panel=RUN
    )


class EvaluateSettings(TrainedModel):
    """Settings of ``molfun evaluate``."""

    output: str | None = option(None, "JSON file to write.", panel=RUN)
    bootstrap: int = option(0, "Draws for 95 % intervals of the metrics.", panel=RUN)
    baselines: bool = option(
        True, "Compare with simple models of the training rows, if they are found.", panel=RUN,
        names=("--baselines/--no-baselines",),
    )  # fmt: skip


class ReportSettings(Command):
    """Settings of ``molfun report``: the runs."""

    runs: list[str] = option(
        ..., "Folders of runs, or of structures of molfun fold.", argument=True
    )


class CompareSettings(Command):
    """Settings of ``molfun compare``: the runs, and the file to write."""

    runs: list[str] = option(..., "Folders of runs; the first is compared with.", argument=True)
    output: str = option("comparison.html", "HTML file to write.", panel=RUN)
    overwrite: bool = OVERWRITE


class SchemaSettings(Command):
    """Settings of ``molfun schema``."""

    kind: str = option(
        "fine-tune", "Command whose file it is: fine-tune or pretrain.", argument=True
    )
    output: str | None = option(None, "File to write; by default it is printed.", panel=RUN)


class CheckOptions(Settings):
    """Options of ``molfun check`` that a run does not have."""

    as_json: bool = option(False, "Print JSON.", panel=RUN, names=("--json",))


class DoctorSettings(Command):
    """Settings of ``molfun doctor``: what is looked at, and how it is printed."""

    output: str = option("runs", "Folder that runs would be written to.", panel=RUN)
    weights: str | None = option(
        None, "Further folder of weight files.", panel=MODEL, path=True,
        shown="weights/ and ~/.molfun/weights/",
    )  # fmt: skip
    device: str = DEVICE
    smoke: bool = option(
        True, "Train tiny models for a few steps.", panel=RUN, names=("--smoke/--no-smoke",)
    )
    as_json: bool = option(False, "Print JSON.", panel=RUN, names=("--json",))


class InstallSettings(Settings):
    """Settings of ``molfun install openfold``: its source, and the interpreter to install for."""

    source: str | None = option(
        None, "Checkout or git URL (URL@tag), not the package index.", names=("--from",)
    )
    python: str | None = option(None, "Interpreter to install for.", shown="the one of molfun")
    force: bool = option(False, "Replace an installed version.")
