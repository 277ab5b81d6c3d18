"""Contributions of residues are differences of predictions, in the units of the label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from molfun import MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError
from molfun.models import residue_attributions
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs

# longer than the number of copies that run together
DATA = SequenceDataset.from_list([("MKVLAGG", 1.0), ("ACDEFGHIKLMNPQRSTVWY" * 2, 5.0), ("M", 2.0)])


def model(**settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", device="cpu", **settings)


def trunk_of(one: MolfunStructureModel, place: int) -> Any:
    forward = ForwardPass(one.backbone, ("single",), device=one.device, reader="test")
    with torch.no_grad():
        return forward.whole(Inputs.of([DATA[place]])).select(["single"])


@pytest.mark.parametrize("head", ["linear", "mlp", "affinity"])
def test_they_are_the_prediction_less_that_without_the_residue(head: str) -> None:
    one = model(head=head)
    part = one.heads[0]
    part.task.fit_targets([1.0, 5.0])
    one.backbone.eval(), part.head.eval()
    found = residue_attributions(one, DATA)
    for place in range(2):
        trunk = trunk_of(one, place)
        whole = float(one.predict(DATA)["prediction"][place])
        for i in range(len(found[place])):
            kept = [j for j in range(trunk.mask.shape[1]) if j != i]
            rest = replace(trunk, mask=trunk.mask[:, kept], single=trunk.single[:, kept])
            with torch.no_grad():
                without = float(part.task.predictions(part.head(rest)))
            assert found[place][i] == pytest.approx(whole - without, abs=1e-5)
        assert np.abs(found[place]).max() > 1e-4
    assert np.isnan(found[2]).all()


def test_of_a_linear_head_they_are_complete() -> None:
    """They sum to the difference to a protein of mean residues, which is none."""
    for values in residue_attributions(model(head="linear"), DATA)[:2]:
        assert values.sum() == pytest.approx(0, abs=1e-4 * np.abs(values).sum())


def test_of_classes_they_are_log_odds() -> None:
    one = model(head="linear", task="binary")
    found = residue_attributions(one, DATA)[0]
    head, trunk = one.heads[0].head, trunk_of(one, 0)
    mask = trunk.mask.clone()
    mask[0, 3] = 0
    with torch.no_grad():
        whole, rest = (head(t)["prediction"][0] for t in (trunk, replace(trunk, mask=mask)))
    chosen = int(whole.argmax())
    expected = (whole[chosen] - whole[1 - chosen]) - (rest[chosen] - rest[1 - chosen])
    assert found[3] == pytest.approx(float(expected), abs=1e-5)
    several = model(head="linear", task="multiclass", task_config={"classes": ["a", "b", "c"]})
    assert np.isfinite(residue_attributions(several, DATA)[1]).all()


def test_what_pools_no_residues_is_refused() -> None:
    per_residue = model(
        head="conv", task="multiclass", task_config={"classes": ["a", "b"], "level": "residue"}
    )
    with pytest.raises(ConfigError, match="'conv' does not pool residues into one label"):
        residue_attributions(per_residue, DATA)
    with pytest.raises(ConfigError, match="'linear' does not pool residues"):
        residue_attributions(model(head="linear", head_config={"pooling": "cls"}), DATA)
    many = model(head="linear", task="multilabel", task_config={"classes": ["a", "b"]})
    with pytest.raises(ConfigError, match="this head predicts several"):
        residue_attributions(many, DATA)
    with pytest.raises(ConfigError, match="There is no head 'x'"):
        residue_attributions(model(head="linear"), DATA, head="x")
