"""What an editor and a type checker see of the public names."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUBS = sorted((ROOT / "molfun").rglob("__init__.pyi"))

USER = '''\
"""A user's module: twenty names, each used as the docs do."""

from pathlib import Path

from molfun import (
    AffinityDataset,
    AtomsDataset,
    CacheConfig,
    Callback,
    DataSplitter,
    FinetuneStrategy,
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    History,
    LengthBatchSampler,
    LoRAFinetune,
    MolfunError,
    MolfunStructureModel,
    PartialFinetune,
    Prediction,
    Sample,
    SampleBatch,
    SequenceDataset,
    TimeSeriesDataset,
)
from molfun.heads import Head
from molfun.tasks import Task


class Patience(Callback):
    def on_epoch_end(self, row: dict[str, object], improved: bool) -> None:
        print(row["epoch"], improved)


def train(table: Path, strategy: FinetuneStrategy) -> tuple[Prediction, dict[str, float]]:
    train, val, test = DataSplitter.random(SequenceDataset.from_csv(table))
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    history: History = model.fit(
        train,
        val,
        strategy=strategy,
        epochs=3,
        cache=CacheConfig(mode="off"),
        callbacks=[Patience()],
    )
    print(history.best, model.summary())
    again = MolfunStructureModel.from_checkpoint("runs/checkpoint").merge()
    return again.predict(test), model.evaluate(val)


strategies: list[FinetuneStrategy] = [
    HeadOnlyFinetune(lr=1e-3),
    LoRAFinetune(rank=8),
    PartialFinetune(unfreeze_last_n=2),
    FullFinetune(ema_decay=0.999),
    GradualFinetune(inner=FullFinetune()),
]
structures: AffinityDataset = AffinityDataset.synthetic(4, length=8)
sampler = LengthBatchSampler(lengths=structures.lengths, batch_size=2)
sets: list[type] = [AtomsDataset, TimeSeriesDataset]
batch = SampleBatch([Sample(id="a", sequence="MKV", target=1.0)])
try:
    train(Path("table.csv"), strategies[0])
except MolfunError as error:
    print(error)


def head_of(model: MolfunStructureModel) -> tuple[Head, Task]:
    return model.heads[0].head, model.heads[0].task
'''

REVEALED = """
reveal_type(MolfunStructureModel("esm2_tiny").fit([]))
reveal_type(LoRAFinetune(rank=8))
reveal_type(structures.subset([0]))
"""
TYPES = ("History", "LoRAFinetune", "AffinityDataset")

WRONG = """\
from molfun import NoSuchThing
from molfun.data import NoSuchDataset
from molfun import LoRAFinetune

LoRAFinetune(rnk=8)
LoRAFinetune(rank="eight")
"""


def mypy(*arguments: str, folder: Path) -> str:
    # of the user: none of the settings that this repository has
    # torch and numpy are left out, which take mypy a minute; pyright reads them, and so does the
    # check of the whole project in make lint
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent"]
    command += ["--no-site-packages", "--ignore-missing-imports"]
    options = ["--strict", "--cache-dir", str(ROOT / ".mypy_cache/user"), "--no-color-output"]
    return run(*command, *options, *arguments, folder=folder)


def pyright(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    return run(*command, *arguments, folder=folder)


def run(*command: str, folder: Path) -> str:
    environment = {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    environment |= {"HOME": str(folder), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


CHECKERS = {"mypy": mypy, "pyright": pyright}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_user_s_module_is_typed(tmp_path: Path, checker: str) -> None:
    pytest.importorskip(checker)
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "revealed.py").write_text(USER + REVEALED)
    (tmp_path / "wrong.py").write_text(WRONG)
    said = CHECKERS[checker]("user.py", "revealed.py", "wrong.py", folder=tmp_path)
    assert "user.py" not in said, said
    for name in TYPES:
        assert re.search(rf"revealed\.py.*\b{name}\"", said), said
    problems = [line for line in said.splitlines() if re.search(r"wrong\.py:\d.*error", line)]
    lines = [int(re.search(r"wrong\.py:(\d+)", line)[1]) for line in problems]  # type: ignore[index]
    assert sorted(set(lines)) == [1, 2, 5, 6], said
    assert "NoSuchThing" in problems[0]


@pytest.mark.parametrize("stub", STUBS, ids=lambda p: p.parent.name)
def test_a_stub_declares_the_public_names_and_python_finds_them(stub: Path) -> None:
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    module = importlib.import_module(package)
    declared = re.findall(r"\bas (\w+)|^(\w+): Registry", stub.read_text(), re.MULTILINE)
    names = {first or second for first, second in declared}
    assert names == set(module.__all__) - {"__version__"}
    assert set(module.__all__) <= set(dir(module))
    for name in names:
        assert getattr(module, name) is not None


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "molfun/py.typed").is_file()
    assert '"*" = ["py.typed", "*.pyi"]' in (ROOT / "pyproject.toml").read_text()
