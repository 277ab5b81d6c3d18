"""Ensembles: one trunk in memory, mean and spread, one folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molfun import (
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    SequenceDataset,
)
from molfun.errors import CheckpointError, ConfigError
from molfun.models import Ensemble
from molfun.training.forward import ForwardPass

DATA = [("MK" + a + b, float(a > b)) for a in "ACDE" for b in "FG"]
TEXTS = [text for text, _ in DATA]
STRATEGIES = {
    "head_only": HeadOnlyFinetune(lr=1e-2),
    "lora": LoRAFinetune(rank=2, lr_lora=1e-2),
    "partial": PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2),
    "full": FullFinetune(lr=1e-3),
}


@pytest.fixture(scope="module")
def base() -> MolfunStructureModel:
    return MolfunStructureModel("esm2", config="esm2_t3_d16_h2", head="regression", device="cpu")


@pytest.fixture(scope="module")
def checkpoints(base: MolfunStructureModel, tmp_path_factory: Any) -> dict[str, list[Path]]:
    """Two runs on different halves of the data, per strategy."""
    place = tmp_path_factory.mktemp("members")
    found: dict[str, list[Path]] = {}
    for name, strategy in STRATEGIES.items():
        for half in (0, 1):
            model = copy.deepcopy(base)
            model.fit(DATA[half::2], strategy=strategy, epochs=2)
            model.save(place / f"{name}_{half}")
            found.setdefault(name, []).append(place / f"{name}_{half}")
    return found


def alone(path: Path) -> np.ndarray:
    model = MolfunStructureModel.from_checkpoint(path, device="cpu")
    return model.predict(TEXTS)["prediction"].numpy()


@pytest.mark.parametrize("members", ["head_only", "lora", "partial", "full", "all"])
def test_the_mean_and_spread_are_those_of_the_models(
    members: str, checkpoints: dict[str, list[Path]], tmp_path: Path
) -> None:
    paths = checkpoints.get(members) or [paths[0] for paths in checkpoints.values()]
    ensemble = Ensemble.from_checkpoints(paths, device="cpu")
    found = ensemble.predict(TEXTS)
    each = np.stack([alone(path) for path in paths])
    assert np.allclose(found["prediction"], each.mean(0), atol=1e-6)
    assert np.allclose(found["std"], each.std(0, ddof=1), atol=1e-6)
    assert found["std"].max() > 0
    ensemble.save(tmp_path / "e")
    again = Ensemble.load(tmp_path / "e", device="cpu").predict(TEXTS)
    for name in ("prediction", "std"):
        assert torch.equal(again[name], found[name])


@pytest.mark.parametrize(("name", "n_own"), [("head_only", 0), ("lora", 0), ("partial", 1)])
def test_weights_in_common_are_held_and_stored_once(
    name: str, n_own: int, checkpoints: dict[str, list[Path]], tmp_path: Path
) -> None:
    ensemble = Ensemble.from_checkpoints(checkpoints[name], device="cpu")
    first, second = (
        {n: p.data_ptr() for n, p in m.backbone.named_parameters() if "lora_" not in n}
        for m in ensemble.models
    )
    own = {n.split(".layers.")[1][0] for n in first if first[n] != second[n] and ".layers." in n}
    assert len(own) == n_own
    assert sum(first[n] == second[n] for n in first) > len(first) / 2
    ensemble.save(tmp_path / "e")
    trunks = [tmp_path / f"e/member_{i}/trunk.safetensors" for i in (1, 2)]
    assert trunks[0].samefile(trunks[1]) == (n_own == 0)


def test_models_that_were_given_stay_independent(base: MolfunStructureModel) -> None:
    models = [copy.deepcopy(base), copy.deepcopy(base)]
    Ensemble(models)
    first, second = (next(model.backbone.parameters()) for model in models)
    before = second.detach().clone()
    with torch.no_grad():
        first.add_(1.0)
    assert torch.equal(second, before)


def test_a_frozen_trunk_runs_once_per_sample(
    checkpoints: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble.from_checkpoints([*checkpoints["head_only"]] * 2, device="cpu")
    ran: list[int] = []
    run = ForwardPass.whole
    monkeypatch.setattr(
        ForwardPass, "whole", lambda self, *a, **k: ran.append(1) or run(self, *a, **k)
    )
    ensemble.predict(TEXTS)
    assert len(ran) == len(TEXTS)


def test_training_rows_of_any_member_are_counted(
    checkpoints: dict[str, list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    Ensemble.from_checkpoints(checkpoints["head_only"], device="cpu").predict([*TEXTS, "WWWW"])
    assert "8 of 9 samples were in the training set of the model" in caplog.text


def test_the_mean_is_measured_next_to_baselines_and_members(
    checkpoints: dict[str, list[Path]],
) -> None:
    paths = [*checkpoints["head_only"], checkpoints["full"][0]]
    ensemble = Ensemble.from_checkpoints(paths, device="cpu")
    found = ensemble.evaluate(DATA, baselines=DATA[:4], bootstrap=5)
    mean = np.mean([alone(path) for path in paths], axis=0)
    labels = np.array([label for _, label in DATA])
    assert found["rmse"] == pytest.approx(np.sqrt(((mean - labels) ** 2).mean()), rel=1e-5)
    assert {"loss", "rmse_low"} <= found.keys()
    new = ensemble.evaluate([("WWWW", 1.0), ("WWWC", 2.0)], baselines=DATA[:4])
    assert {"baseline/mean/rmse", "member_1/rmse"} <= new.keys()
    one = MolfunStructureModel.from_checkpoint(paths[2], device="cpu").evaluate(DATA)
    assert found["member_3/rmse"] == pytest.approx(one["rmse"], rel=1e-6)
    assert found.verdict.endswith(
        "8 of 8 rows trained the model, so this is no test of new ones and no baseline is fitted."
    )
    assert ensemble.evaluate([("WWWW", 1.0), ("WWWC", 2.0)]).verdict == ""
    with pytest.raises(ConfigError, match=r"not trained in this process\. Pass the training set"):
        ensemble.evaluate(DATA, baselines=True)


def test_baselines_of_an_ensemble_learn_from_the_rows_of_all_members(
    base: MolfunStructureModel,
) -> None:
    models = []
    for rows in (DATA[:4], DATA[2:6]):
        models.append(copy.deepcopy(base))
        models[-1].fit(rows, strategy="head_only", epochs=1)
    found = Ensemble(models).evaluate([("WWWW", 1.0)], baselines=True)
    mean = np.mean([label for _, label in DATA[:6]])
    assert found["baseline/mean/rmse"] == pytest.approx(abs(1.0 - mean))


def test_classes_have_a_spread_per_class() -> None:
    models = []
    for seed in (0, 1):
        model = MolfunStructureModel(
            "esm2_tiny", head="binary", task_config={"classes": ["no", "yes"]}, device="cpu",
            seed=seed,
        )  # fmt: skip
        labelled = SequenceDataset.from_list([(t, "yes" if y else "no") for t, y in DATA])
        model.fit(labelled, strategy="head_only", epochs=1)
        models.append(model)
    found = Ensemble(models).predict(TEXTS)
    assert found["std"].shape == found["probs"].shape == (len(TEXTS), 2)
    assert torch.allclose(found["probs"].sum(1), torch.ones(len(TEXTS), dtype=torch.float64))


def test_what_is_no_ensemble_is_refused(
    base: MolfunStructureModel, checkpoints: dict[str, list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at least two models, got 1"):
        Ensemble([base])
    other = MolfunStructureModel("esm2_tiny", head="mlp", device="cpu")
    with pytest.raises(ConfigError, match="Model 2 of the ensemble differs from the first in back"):
        Ensemble([base, other])
    with pytest.raises(CheckpointError, match=r"holds no ensemble: ensemble\.json is missing"):
        Ensemble.load(tmp_path)
    (tmp_path / "e").mkdir()
    (tmp_path / "e/notes.txt").write_text("mine")
    ensemble = Ensemble.from_checkpoints(checkpoints["head_only"], device="cpu")
    with pytest.raises(CheckpointError, match=r"holds other files \(notes\.txt\)"):
        ensemble.save(tmp_path / "e")
    assert (tmp_path / "e/notes.txt").read_text() == "mine"
    ensemble.save(tmp_path / "f").save(tmp_path / "f")
    for text, match in (
        ('{"format": 2}', "has the format 2 of ensembles"),
        ('{"format": 1, "members": 1}', "members is 1"),
        ("[", "is damaged"),
    ):
        (tmp_path / "f/ensemble.json").write_text(text)
        with pytest.raises(CheckpointError, match=match):
            Ensemble.load(tmp_path / "f")
