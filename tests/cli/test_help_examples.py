"""The examples in the help of the commands run as they stand there."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from tiny import PET_TINY, build_atoms

from molfun.cli.app import VERBS
from molfun.cli.verbs import Verb

Command = Callable[..., Result]


def examples(verb: Verb) -> list[str]:
    lines = [line.strip() for line in verb.help.splitlines()]
    return [line for line in lines if line.startswith("molfun ")]


EXAMPLES = [example for verb in VERBS for example in examples(verb)]
SMALL = {
    "--demo": "--demo --preset tiny",  # not 93 million weights
    "molfun doctor": "molfun doctor --no-smoke",
    "--pdbs pdbs/": "--pdbs pdbs/ --preset tiny",
    "esm2_t6_8M_UR50D": "esm2_tiny",
    "--sequences": "--backbone esm2_tiny --sequences",
    "--folds 3": "--folds 2",
    "--trials 50": "--trials 2",
    "--split identity": "--split identity --folds 2",
    "--backbone esm2 ...": "--backbone esm2_tiny --data gb1.csv",
}
"""What an example leaves out, or has larger than a test should."""
SMALL_SCAN = {
    "esm2.pt": "esm2.pt --backbone esm2_tiny",
    "--variants": "--backbone esm2_tiny --variants",
    "A24G,A24G:K31E": "M1A,M1A:K2E",
    "runs/gb1/checkpoint": "runs/a/checkpoint",
}
SMALL_FOLD = {"--sequences": "--preset tiny --recycles 0 --sequences"}
"""The same for ``molfun fold``, whose model is the checkpoint or the weights of its example."""
FINETUNE = "{backbone: timeseries, task: binary, strategy: head_only}"
BASE = "{backbone: esm2_tiny, data: gb1.csv, epochs: 1, strategy: head_only, device: cpu}"
OPTIONS = """
architecture:
  name: pet
  training: {num_epochs: 1, finetune: {method: heads, read_from: pet.ckpt}}
training_set: x.xyz
validation_set: 0.2
trust: true
"""


@pytest.fixture
def files(project: Path, molfun: Command) -> Path:
    """The files that the examples name, in the current folder."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from molfun import MolfunStructureModel
    from molfun.models.export import export

    Path("data.csv").rename("pdbbind.csv")
    sequences = [f"MK{a}V{b}" for a in "ACDE" for b in "LKI"]
    table = "\n".join(["sequence,target", *(f"{s},{i % 5}" for i, s in enumerate(sequences)), ""])
    for name in ("gb1.csv", "x.csv"):
        Path(name).write_text(table)
    records = "".join(f">p{i}\n{text}\n" for i, text in enumerate(sequences))
    Path("proteins.fasta").write_text(">a\nMKTAYIAKQR\n>b\nMKT:GSH\n")
    Path("wt.fasta").write_text(">gb1\nMKTAYIAK\n")
    tiny = MolfunStructureModel("esm2_tiny", device="cpu").backbone.model
    torch.save({"model": tiny.state_dict()}, "esm2.pt")  # type: ignore[union-attr]
    folds = MolfunStructureModel("openfold", config="tiny", device="cpu")
    torch.save(folds.backbone.model.state_dict(), "finetuning_ptm_2.pt")
    shutil.copytree("pdbs", "folded")
    Path("mine.fasta.gz").write_bytes(gzip.compress(records.encode()))
    steps = [f"s{i},{t},{i + t},{'yes' if i % 2 else 'no'}" for i in range(12) for t in range(4)]
    Path("series.csv").write_text("\n".join(["id,time,hr,target", *steps, ""]))
    head = "@problemName x\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n"
    Path("series.ts").write_text(head + "".join(f"{i},1,2,{i}:a\n" for i in range(24)))
    Path("finetune.yaml").write_text(FINETUNE)
    Path("options.yaml").write_text(OPTIONS)
    Path("base.yaml").write_text(BASE)
    Path("space.yaml").write_text("lr: [0.01, 0.001]\n")
    frames = []
    for sample in build_atoms(10):
        sample.atoms.calc = SinglePointCalculator(sample.atoms, **sample.target)
        frames.append(sample.atoms)
    write("x.xyz", frames, format="extxyz")
    model = MolfunStructureModel("pet", config=PET_TINY, head="energy", device="cpu")
    model.fit(frames, strategy="head_only", epochs=1)
    export(model, Path("pet.ckpt"))
    started = molfun("fine-tune", "--backbone", "esm2_tiny", "--data", "x.csv", "--epochs", 1,
                     "--device", "cpu", "--output", "runs/a")  # fmt: skip
    assert started.exit_code == 0, started.output
    return project


@pytest.mark.slow
def test_the_examples_of_the_help_run(molfun: Command, files: Path) -> None:
    verbs = {line.split()[1] for line in EXAMPLES}
    assert verbs == {
        *("fine-tune", "cv", "fold", "score", "pretrain", "train", "check", "doctor", "schema"),
        *("report", "compare", "tune", "scan"),
    }
    for i, example in enumerate(EXAMPLES):
        line = re.sub(r"--epochs \d+", "", example)
        small = {"fold": SMALL_FOLD, "scan": SMALL_SCAN}.get(line.split()[1], SMALL)
        for old, new in small.items():
            line = line.replace(old, new)
        verb, *arguments = shlex.split(line)[1:]
        if verb in ("fine-tune", "cv", "pretrain"):
            arguments += ["--epochs", "1", "--device", "cpu"]
        if verb in ("report", "compare"):
            for run in arguments:
                shutil.copytree("runs/a", run, dirs_exist_ok=True)
        elif verb != "schema" and "--output" not in arguments:
            arguments += ["--output", f"runs/example_{i}"]
        done = molfun(verb, *arguments)
        # so few rows as here are worth a warning of `molfun check`
        allowed = (0, 3) if verb == "check" else (0,)
        assert done.exit_code in allowed, (example, done.output, done.exception)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "molfun " in verb.help])
def test_the_help_shows_its_examples_whole(
    molfun: Command, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for flag in ("--help", "--help-all") if verb.folds else ("--help",):
        shown = " ".join(molfun(verb.name, flag).output.replace("│", " ").split())
        assert all(example in shown for example in examples(verb))
