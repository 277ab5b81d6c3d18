"""The code in README, docs and the guide's Python API runs as it stands.

Only what no test machine has is put in place: small weights where the text says the pretrained
file is, a table and structures under ``data/``, and a small architecture under the name of the
large one. The GPU becomes the CPU.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pdb_text import pdb_chain
from tiny import build_tiny_model

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
    state = ESM2Backbone("esm2_t6_8M_UR50D").model.state_dict()
    torch.save({"model": state}, folder / ".molfun/weights/esm2_t6_8M_UR50D.pt")


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


@pytest.mark.parametrize(
    ("page", "index", "code"), SNIPPETS, ids=[f"{p}-{i}" for p, i, _ in SNIPPETS]
)
def test_code_in_the_documentation_runs(user: Path, page: str, index: int, code: str) -> None:
    if page == "sequences.md":
        _sequences(user)
    _run(code.replace("epochs=30", "epochs=2").replace("epochs=10", "epochs=2"))


def test_numbers_in_the_readme_are_filled_in() -> None:
    assert "@" not in (ROOT / "README.md").read_text().replace("@dataclass", "")
