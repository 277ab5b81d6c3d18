"""The code and the commands in README, docs and the guide's Python API run as they stand.

Only what no test machine has is put in place: small weights where the text says the pretrained
file is, tables, structures, sequences, series and atoms, and a small architecture under the name of
the large one. The GPU becomes the CPU, and a command without ``--epochs`` trains for one.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from pdb_text import pdb_chain
from tiny import PET_TINY, build_atoms, build_tiny_model
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# what begins with the name of a file is part of a package (tests/test_extending.py)
CODE = re.compile(r"```python\n((?!# \S+\.py).*?)```", re.DOTALL)
SNIPPETS = [
    (page.name, i, code) for page in PAGES for i, code in enumerate(CODE.findall(page.read_text()))
]

GUIDE = """
from openfold.config import model_config
from torch.utils.data import DataLoader

from molfun.models.structure import MolfunStructureModel
from molfun.data import AffinityDataset, DataSplitter
from molfun.training import LoRAFinetune

dataset = AffinityDataset.from_csv("data/pdbbind.csv", "data/pdbs/")
train_ds, val_ds, test_ds = DataSplitter.random(dataset)

train_loader = DataLoader(train_ds, batch_size=1, shuffle=True,
                          collate_fn=AffinityDataset.collate_fn)
val_loader = DataLoader(val_ds, batch_size=1,
                        collate_fn=AffinityDataset.collate_fn)

model = MolfunStructureModel(
    "openfold",
    config=model_config("model_1_ptm"),
    weights="~/.molfun/weights/finetuning_ptm_2.pt",
    device="cuda",
    head="affinity",
    head_config={"single_dim": 384, "hidden_dim": 128},
)

strategy = LoRAFinetune(
    rank=8,
    lr_lora=1e-4,
    lr_head=1e-3,
    warmup_steps=200,
    ema_decay=0.999,
    accumulation_steps=8,
    early_stopping_patience=5,
)

history = model.fit(train_loader, val_loader, strategy=strategy, epochs=30)

model.save("runs/production/checkpoint")

test_batch = next(iter(DataLoader(test_ds, collate_fn=AffinityDataset.collate_fn)))
model.merge()
prediction = model.predict(test_batch)
"""

LOADING = """
from openfold.config import model_config
from molfun.models.structure import MolfunStructureModel
from molfun.training import LoRAFinetune

model = MolfunStructureModel(
    "openfold",
    config=model_config("model_1_ptm"),
    weights="~/.molfun/weights/finetuning_ptm_2.pt",
    device="cuda",
    head="affinity",
    head_config={"single_dim": 384, "hidden_dim": 128},
)

strategy = LoRAFinetune(rank=8, target_modules=["linear_q", "linear_v"], use_hf=False)
strategy.setup(model)

model.load("runs/production/checkpoint")

model.merge()
output = model.predict(test_batch)
model.unmerge()
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder and home, with a tiny model under the name of the pretrained one."""
    from openfold import config as openfold_config

    from molfun.backbones.openfold import presets

    rng = np.random.default_rng(0)
    (tmp_path / "data/pdbs").mkdir(parents=True)
    rows = ["pdb_id,affinity,resolution,year"]
    residues = ["ALA", "GLY", "LEU", "LYS", "GLU", "TRP", "SER", "VAL"]
    for i in range(12):
        lines = [*pdb_chain(list(rng.choice(residues, 8))), "END", ""]
        (tmp_path / f"data/pdbs/1ab{i:x}.pdb").write_text("\n".join(lines))
        rows.append(f"1ab{i:x},{6 + rng.normal():.2f},{1.5 + 0.2 * i:.1f},{2010 + i}")
    (tmp_path / "data/pdbbind.csv").write_text("\n".join(rows) + "\n")

    weights = tmp_path / ".molfun/weights/finetuning_ptm_2.pt"
    weights.parent.mkdir(parents=True)
    torch.save({"ema": {"params": build_tiny_model().backbone.model.state_dict()}}, weights)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    named = openfold_config.model_config
    tiny = presets._named("tiny")
    monkeypatch.setattr(
        openfold_config,
        "model_config",
        lambda name, **_: tiny if name == "model_1_ptm" else named(name),
    )
    return tmp_path


def _sequences(folder: Path) -> None:
    """What docs/sequences.md speaks of: a table, and the smallest released size at random."""
    from molfun.backbones.esm2 import ESM2Backbone

    rng = np.random.default_rng(0)
    rows = ["sequence,fitness,split"]
    for i in range(12):
        text = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 6))
        rows.append(f"{text},{rng.normal():.2f},{('train', 'valid', 'test')[i % 3]}")
    (folder / "gb1.csv").write_text("\n".join(rows) + "\n")
    (folder / "wt.fasta").write_text(">gb1\nMQYKLILNGKTL\n")
    chains = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 7)) for _ in range(32)]
    # receptors of two ligands each
    binders = [f"{chains[i // 2]},{chains[8 + i]},{i % 7}" for i in range(16)]
    (folder / "binders.csv").write_text("\n".join(["receptor,ligand,pkd", *binders, ""]))
    mutants = [f"{a}{i + 1}W,{i % 5}" for i, a in enumerate("MQYKLILNGKTL")]
    (folder / "mutants.csv").write_text("\n".join(["mutant,target", *mutants, ""]))
    _esmc(folder / "ESMC-300M")
    state = ESM2Backbone("esm2_t6_8M_UR50D").model.state_dict()
    torch.save({"model": state}, folder / ".molfun/weights/esm2_t6_8M_UR50D.pt")


def _esmc(folder: Path) -> None:
    """A tiny ESM-C under the name of the published folder."""
    from transformers import EsmcConfig, EsmcForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    EsmcForMaskedLM(EsmcConfig(**sizes, intermediate_size=32)).save_pretrained(folder)


def _run(code: str, names: dict[str, object] | None = None) -> dict[str, object]:
    code = code.replace('device="cuda"', 'device="cpu"').replace(
        '"single_dim": 384', '"single_dim": 32'
    )
    code = code.replace('"path/to/this/folder"', '"runs/lora/checkpoint"')
    space: dict[str, object] = dict(names or {})
    exec(compile(code, "documentation", "exec"), space)
    return space


def test_the_guide_s_python_api_and_loading_sections(user: Path) -> None:
    trained = _run(GUIDE)
    history, prediction = trained["history"], trained["prediction"]
    assert history[0].keys() >= {"epoch", "train_loss", "val_loss", "lr"}  # type: ignore[index]
    assert prediction["prediction"].shape == (1,)  # type: ignore[index]
    names = {path.name for path in (user / "runs/production/checkpoint").iterdir()}
    assert names >= {"meta.pt", "peft_adapter", "head.pt"}
    loaded = _run(LOADING, {"test_batch": trained["test_batch"]})
    torch.testing.assert_close(
        loaded["output"]["prediction"],
        prediction["prediction"],
        rtol=0,
        atol=0,  # type: ignore[index]
    )


# of lightning: the old way to ask torch's pytrees, and advice about loaders, steps and old folders
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(
    ("page", "index", "code"), SNIPPETS, ids=[f"{p}-{i}" for p, i, _ in SNIPPETS]
)
def test_code_in_the_documentation_runs(user: Path, page: str, index: int, code: str) -> None:
    if page == "sequences.md":
        _sequences(user)
    _yaml_files(user, ROOT / ("docs" if page != "README.md" else "") / page)
    _run(re.sub(r"epochs=\d{2,}", "epochs=2", code))


# metatrain's file, which a page names and does not show
OPTIONS = """
architecture:
  name: pet
  training:
    num_epochs: 1
    finetune: {method: lora, read_from: pet.ckpt, config: {rank: 4}}
"""
RUN_ELSEWHERE = {
    "make demo": "builds the environment that runs this test",
    "make test": "is the suite itself",
    "make bench": "hours; tests/test_benchmarks.py",
    "python benchmarks": "hours; tests/test_benchmarks.py",
    "pip install": "needs a package index",
    "molfun install": "tests/test_install_openfold.py",
    "molfun doctor": "tests/checks/test_doctor.py",
    "molfun fine-tune --config lora.yaml --output": "tests/cli/test_processes.py",
    "torchrun": "tests/training/test_parallel.py",
    "molfun fold --sequences proteins.fasta --weights": "tests/cli/test_several.py",
}
EDITED = {
    "molfun fine-tune --demo": "molfun fine-tune --demo --preset tiny",  # not 93 million weights
    "esm2_t4_d128_h8": "esm2_t2_d16_h2",
    "--trials 100": "--trials 7",
}
BEFORE = {"guide.md": ["molfun fine-tune --data data/pdbbind.csv --pdbs pdbs --output runs/lora"]}
"""The run that a page goes on with."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Give the commands of a page in their order, without comments."""
    lines = [
        line.split("  #")[0].strip().removeprefix(".venv/bin/")
        for language, block in BLOCK.findall(page.read_text())
        if not language
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
    ]
    return [
        line
        for line in lines
        if re.match(r"(molfun [a-z]+[- ]|torchrun |make |pip |python )", line)
    ]


def _yaml_files(folder: Path, page: Path) -> None:
    """Write what a page shows under the name of a YAML file."""
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", page.read_text(), re.DOTALL):
        (folder / name).write_text(text)


def _files(folder: Path, page: Path) -> None:
    """Make the files that the commands of a page read."""
    _yaml_files(folder, page)
    bound = (folder / "data/pdbbind.csv").read_text()
    for name in ("new.csv", "test.csv", "more.csv"):
        (folder / name).write_text(bound)
    (folder / "pdbs").symlink_to("data/pdbs")
    labels = [f"1ab{i:x},{i % 2}" for i in range(12)]
    (folder / "peptides.csv").write_text("\n".join(["pdb_id,binds", *labels, ""]))
    _sequences(folder)
    weights = folder / ".molfun/weights"
    (folder / "finetuning_ptm_2.pt").symlink_to(weights / "finetuning_ptm_2.pt")
    for name in ("esm2_t6_8M_UR50D.pt", "esm2.pt"):
        (folder / name).symlink_to(weights / "esm2_t6_8M_UR50D.pt")
    sequences = [row.split(",")[0] for row in (folder / "gb1.csv").read_text().splitlines()[1:]]
    labelled = [f"{text},{i % 3},{60 + i if i % 4 else ''}" for i, text in enumerate(sequences)]
    fitness = [f"{text},{i % 7}" for i, text in enumerate(sequences)]
    (folder / "variants.csv").write_text("\n".join(["sequence,fitness", *fitness, ""]))
    (folder / "two.csv").write_text("\n".join(["sequence,ddg,tm", *labelled, ""]))
    records = "".join(f">p{i}\n{text}\n" for i, text in enumerate(sequences))
    (folder / "new.fasta").write_text(records)
    for name in ("proteome", "family", "proteins", "valid_1000"):
        (folder / f"{name}.fasta.gz").write_bytes(gzip.compress(records.encode()))
    (folder / "uniref").mkdir()
    names = [f"p{i}" for i in range(len(sequences))]
    table = pyarrow.table({"name": names, "sequence": sequences})
    pyarrow.parquet.write_table(table, folder / "uniref" / "part-0.parquet")
    if page.name in ("README.md", "timeseries.md"):
        _series(folder, *(["new.csv"] if page.name == "timeseries.md" else []))
    if page.name in ("README.md", "atoms.md"):
        _atoms(folder)
    if page.name == "atoms.md":
        (folder / "new.csv").unlink()


def _series(folder: Path, *more: str) -> None:
    from molfun.data import double_well

    data = double_well(n_series=24, n_frames=(12, 20), seed=0)
    lines = [["id", "time", *data.feature_names, "target"]]
    for sample in data:
        for step, frame in enumerate(sample.features["timeseries"].tolist()):
            lines.append([sample.id, step, *frame, sample.target])
    table = "\n".join([*(",".join(map(str, line)) for line in lines), ""])
    for name in ("series.csv", *more):
        (folder / name).write_text(table)


def _atoms(folder: Path) -> None:
    """Extended xyz of random molecules, a small PET as metatrain saves it, and its options."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from molfun import HeadOnlyFinetune, MolfunStructureModel
    from molfun.models.export import export

    frames = []
    for sample in build_atoms(10):
        sample.atoms.calc = SinglePointCalculator(sample.atoms, **sample.target)
        frames.append(sample.atoms)
    for name in ("a", "b", "test", "new", "pbe0", "old", "train", "structures"):
        write(folder / f"{name}.xyz", frames, format="extxyz")
    model = MolfunStructureModel("pet", config=PET_TINY, head="energy", device="cpu")
    model.fit(frames, strategy=HeadOnlyFinetune(), epochs=1)
    export(model, folder / "pet.ckpt")
    (folder / "options.yaml").write_text(OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "extending.md" and commands(page)],
    ids=lambda page: page.name,
)
def test_commands_in_the_documentation_run(user: Path, page: Path) -> None:
    """All lines of a page, one after the other (those of extending.md: test_extending.py)."""
    from molfun.cli.main import app

    _files(user, page)
    runner = CliRunner()
    for command in BEFORE.get(page.name, []) + commands(page):
        if command.startswith(tuple(RUN_ELSEWHERE)):
            continue
        line = command
        for old, new in EDITED.items():
            line = line.replace(old, new)
        verb = line.split()[1]
        if verb in ("fine-tune", "cv", "pretrain"):
            line = re.sub(r"--epochs \d+", "", line)
            line += "" if "--resume" in line else " --epochs 1 --device cpu"
        arguments = [part.replace("~", str(user)) for part in line.split()[1:]]
        done = runner.invoke(app, arguments)
        # so few rows as here are worth a warning of `molfun check`
        allowed = (0, 3) if verb == "check" else (0,)
        assert done.exit_code in allowed, (line, done.output, done.exception)


def test_numbers_in_the_readme_are_filled_in() -> None:
    assert "@" not in (ROOT / "README.md").read_text().replace("@dataclass", "")
