"""Fine-tuning on crops that are drawn: others in each epoch, and the same ones after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fit_runs import Crash, StopAt
from pdb_text import pdb_chain
from tiny import build_tiny_model

from molfun.data import NamedTargets, StructureDataset
from molfun.data.structure_labels import has_frame
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


def test_a_drawn_crop_without_frames_has_no_label(tmp_path: Path) -> None:
    lines = pdb_chain(CHAIN)
    # of the last six residues the CA atoms alone, so that crops there have too few frames
    kept = [x for x in lines if int(x[22:26]) <= 4 or x[12:16].strip() == "CA"]
    (tmp_path / "1abc.pdb").write_text("\n".join([*kept, "END", ""]))
    drawn = StructureDataset.from_folder(tmp_path, max_length=4).random_crops("contiguous")
    samples = []
    for seed in range(20):
        torch.manual_seed(seed)
        samples.append(drawn[0])
    labelled = [s.target is not None for s in samples]
    assert True in labelled
    assert False in labelled
    assert labelled == [has_frame(s.protein).sum() >= 2 for s in samples]
    # and the same next to labels of other heads
    whole = StructureDataset.from_folder(tmp_path, max_length=4)
    named = NamedTargets({"structure": whole}).random_crops("contiguous")
    for seed, expected in enumerate(labelled):
        torch.manual_seed(seed)
        assert ("structure" in named[0].target) == expected
