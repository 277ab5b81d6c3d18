"""Fine-tuning on crops that are drawn: others in each epoch, and the same ones after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fit_runs import Crash, StopAt
from pdb_text import pdb_chain
from tiny import build_tiny_model

from molfun.data import StructureDataset
from molfun.strategies import PartialFinetune
from molfun.training import Callback

CHAIN = ["ALA", "GLY", "SER", "LEU", "LYS", "TRP", "TYR", "VAL", "GLU", "ASP"]


@pytest.fixture
def data(tmp_path: Path) -> StructureDataset:
    for i in range(4):
        lines = pdb_chain(CHAIN[i:] + CHAIN[:i])
        (tmp_path / f"{i}abc.pdb").write_text("\n".join([*lines, "END", ""]))
    return StructureDataset.from_folder(tmp_path, max_length=6, resolution=2.0)


def test_a_killed_run_draws_the_same_crops_again(data: StructureDataset, tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: Callback, crops: bool = True, resume: bool = False):  # type: ignore[no-untyped-def]
        train = data.subset([0, 1, 2])
        model = build_tiny_model(head="structure", backbone_config={"fill_zero_init": 0.1})
        history = model.fit(
            train.random_crops("contiguous") if crops else train,
            data.subset([3]),
            strategy=PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3, accumulation_steps=2),
            epochs=2,
            output_dir=folder,
            callbacks=list(callbacks),
            save_every_steps=1,
            resume=resume,
        )
        return history, {n: p.detach().clone() for n, p in model.named_parameters()}

    whole, weights = run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "killed", StopAt(4))
    resumed, again = run(tmp_path / "killed", resume=True)
    assert repr(resumed) == repr(whole)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    fixed, others = run(tmp_path / "fixed", crops=False)
    assert not all(torch.equal(weights[name], others[name]) for name in weights)
    # the frozen blocks run again for crops that are drawn, and once for those that are not
    assert "ran 4 times instead of 8" in fixed.cache_report
    assert "ran 1 times instead of 2" in whole.cache_report
