"""The commands of ``molfun``, listed with their help and the classes of their settings.

Nothing heavy is imported before a command runs: ``molfun --help`` answers in 0.2 s, ``import
torch`` alone takes two (docs/performance.md).
"""

from __future__ import annotations

from typing import Annotated

import typer

from molfun.cli.verbs import Verb, VerbGroup

_SETTINGS, _COMMANDS = "molfun.cli.settings:", "molfun.cli.command_settings:"

VERBS = (
    Verb(
        "fine-tune",
        """
        Fine-tune a model on structures with affinities, sequences with labels, or energies.

        For example:

        \b
        molfun fine-tune --demo --strategy lora --epochs 3 --output runs/demo
        molfun fine-tune --data pdbbind.csv --pdbs pdbs/ --output runs/affinity
        molfun fine-tune --backbone esm2_t6_8M_UR50D --data gb1.csv
        molfun fine-tune --config finetune.yaml --data series.csv accum=2
        molfun fine-tune --backbone pet --data x.xyz --weights pet.ckpt --trust
        molfun fine-tune --init-from runs/a/checkpoint --data x.csv --output runs/b
        """,
        settings=(f"{_COMMANDS}FileOptions", f"{_SETTINGS}FineTuneSettings"),
        run="molfun.cli.fine_tune:fine_tune",
        kinds="all",
        folds=True,
    ),
    Verb(
        "cv",
        """
        Cross-validate: train a model per fold, and predict every sample by one that never saw it.

        For example:

        \b
        molfun cv --demo --folds 3 --strategy head_only --epochs 3 --output runs/cv
        molfun cv --backbone esm2_t6_8M_UR50D --data gb1.csv --split identity
        """,
        settings=(f"{_COMMANDS}FileOptions", "molfun.cli.cv_settings:CvSettings"),
        run="molfun.cli.cv:cv",
        kinds="all",
        folds=True,
    ),
    Verb(
        "tune",
        """
        Search settings: many trials of fine-tuning, judged on validation rows alone.

        For example:

        \b
        molfun tune --config base.yaml --space space.yaml --output runs/tune
        molfun tune --output runs/tune
        molfun fine-tune --config runs/tune/best.yaml

        The second command goes on with the study, or joins it, also on another node.

        space.yaml maps settings to what is drawn: lr: {low: 1.0e-5, high: 1.0e-3, log: true},
        lora_rank: {low: 4, high: 32, step: 4}, batch_size: [4, 8, 16].
        """,
        settings=(f"{_COMMANDS}TuneSettings",),
        run="molfun.cli.tune:tune",
    ),
    Verb(
        "embed",
        "Write representations of sequences, to use in other programs.",
        settings=(f"{_COMMANDS}EmbedSettings",),
        run="molfun.cli.embed:embed",
    ),
    Verb(
        "fold",
        """
        Predict structures, and write mmCIF, PDB and confidence of each.

        For example:

        \b
        molfun fold --sequences proteins.fasta --weights finetuning_ptm_2.pt
        molfun fold runs/affinity/checkpoint --data pdbbind.csv --pdbs pdbs/
        """,
        settings=(f"{_COMMANDS}FoldSettings",),
        run="molfun.cli.fold:fold",
    ),
    Verb(
        "scan",
        """
        Score variants of a protein: by a language model, or by a fine-tuned model.

        For example:

        \b
        molfun scan --sequence wt.fasta --weights esm2.pt --output scan.csv
        molfun scan --sequence wt.fasta --variants A24G,A24G:K31E --method wt_marginal
        molfun scan runs/gb1/checkpoint --sequence wt.fasta --zero-shot
        """,
        settings=(f"{_COMMANDS}ScanSettings",),
        run="molfun.cli.scan:scan",
    ),
    Verb(
        "score",
        """
        Score predicted structures: lDDT, TM-score, GDT, RMSD, DockQ of complexes, clashes.

        For example:

        molfun score folded/ pdbs/ --output scores.csv
        """,
        settings=(f"{_COMMANDS}ScoreSettings",),
        run="molfun.cli.score:score_structures",
    ),
    Verb(
        "pretrain",
        """
        Train a backbone on sequences or time series without labels, to fine-tune from afterwards.

        For example:

        \b
        molfun pretrain --sequences mine.fasta.gz --output runs/pre
        molfun fine-tune --weights runs/pre/weights.safetensors --backbone esm2 ...
        molfun pretrain --data series.ts encoder=transformer ssl=mae
        """,
        settings=(f"{_COMMANDS}FileOptions", "molfun.cli.pretrain_settings:PretrainSettings"),
        run="molfun.cli.pretrain:pretrain",
        folds=True,
    ),
    Verb(
        "train",
        """
        Train as a file of options says, metatrain's or Molfun's own.

        For example:

        \b
        molfun train options.yaml
        molfun train options.yaml training_set=x.xyz trust=true --output runs/pet
        """,
        settings=(f"{_COMMANDS}TrainOptions", f"{_COMMANDS}TrainFlags"),
        run="molfun.cli.fine_tune:train",
    ),
    Verb(
        "export",
        "Write a model for other programs, with its adapters folded in.",
        settings=(f"{_COMMANDS}ExportSettings",),
        run="molfun.cli.export:export",
    ),
    Verb(
        "predict",
        "Predict for every row of a table or FASTA file, from a checkpoint alone.",
        settings=(f"{_COMMANDS}PredictSettings",),
        run="molfun.cli.predict:predict",
        kinds="again",
    ),
    Verb(
        "evaluate",
        "Compare predictions with the labels of a table.",
        settings=(f"{_COMMANDS}EvaluateSettings",),
        run="molfun.cli.predict:evaluate",
        kinds="again",
    ),
    Verb(
        "check",
        """
        Check data and settings of a fine-tuning run, all faults at once; train nothing.

        For example:

        \b
        molfun check --data pdbbind.csv --pdbs pdbs/
        molfun check --backbone esm2_t6_8M_UR50D --data gb1.csv --json

        Exit code 0 if all of it passed, 1 if something failed (a run would refuse it), 3 if there
        are warnings alone (a run would start, and someone should look).
        """,
        settings=(
            f"{_COMMANDS}CheckOptions",
            f"{_COMMANDS}FileOptions",
            f"{_SETTINGS}FineTuneSettings",
        ),
        run="molfun.cli.check:check",
        kinds="all",
        folds=True,
    ),
    Verb(
        "doctor",
        """
        Examine the installation and the machine; exit code 1 if something failed.

        For example:

        \b
        molfun doctor
        molfun doctor --json --no-smoke

        Put its text into a report of a fault.
        """,
        settings=(f"{_COMMANDS}DoctorSettings",),
        run="molfun.cli.doctor:doctor",
    ),
    Verb(
        "report",
        """
        Write report.html into the folders of finished runs: one file that works offline.

        Folders of molfun fold show their structures in 3D, by confidence.

        For example:

        molfun report runs/lora runs/full
        """,
        settings=(f"{_COMMANDS}ReportSettings",),
        run="molfun.cli.report:report",
    ),
    Verb(
        "compare",
        """
        Compare finished runs on the samples that all of them predicted, with paired intervals.

        For example:

        molfun compare runs/head_only runs/lora runs/full
        """,
        settings=(f"{_COMMANDS}CompareSettings",),
        run="molfun.cli.report:compare",
    ),
    Verb(
        "schema",
        """
        Print the JSON schema of a file of settings, with which editors complete and check it.

        For example:

        molfun schema --output molfun.schema.json

        and in the first line of the file: # yaml-language-server: $schema=molfun.schema.json
        """,
        settings=(f"{_COMMANDS}SchemaSettings",),
        run="molfun.cli.schema:schema",
    ),
)


class _Molfun(VerbGroup):
    verbs = VERBS


class _Install(VerbGroup):
    verbs = (
        Verb(
            "openfold",
            "Install the openfold package without compiling anything.",
            settings=(f"{_COMMANDS}InstallSettings",),
            run="molfun.cli.install:openfold",
        ),
    )


app = typer.Typer(
    name="molfun",
    cls=_Molfun,
    help="Fine-tune molecular foundation models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,  # errors are one line, see `console.errors_in_one_line`
)
app.add_typer(
    typer.Typer(cls=_Install, no_args_is_help=True),
    name="install",
    help="Install what pip alone cannot.",
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
