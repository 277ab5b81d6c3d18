"""What is said of rows of the training set, contradictions, unused splits and second fits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader, Subset

from molfun import AffinityDataset, MolfunStructureModel, SequenceDataset, TimeSeriesDataset
from molfun.errors import MolfunError
from molfun.sample import Sample
from molfun.training import Callback

PAIRS = [("MKVA", 0.0), ("MKVC", 1.0), ("MKVD", 2.0), ("MKVE", 3.0)]
NEW = [("GGGA", 0.0), ("GGGC", 1.0)]
SEEN = "were in the training set of the model: results on them say nothing about new ones"


def esm(**options: Any) -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression", device="cpu", **options)


def fit(model: MolfunStructureModel, data: Any, *more: Any, **options: Any) -> None:
    model.fit(data, *more, strategy="head_only", epochs=1, **options)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_rows_of_the_training_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = esm()
    fit(model, SequenceDataset.from_list(PAIRS))
    model.save(tmp_path / "checkpoint")
    warnings(caplog)
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    n = sum(p.numel() for p in again.backbone.parameters())
    assert warnings(caplog) == [
        f"{tmp_path / 'checkpoint'} was trained on a backbone without pretrained weights: {n:,} of "
        f"its weights are random."
    ]
    mixed = SequenceDataset.from_list([*NEW, ("mkva", 7.0), PAIRS[3]])
    loader = DataLoader(Subset(mixed, [0, 2]), 2, collate_fn=mixed.collate_fn)
    for one in (model, again):
        one.evaluate(mixed)
        assert warnings(caplog) == [f"2 of 4 samples {SEEN}."]
        one.predict(mixed)
        assert warnings(caplog) == [f"2 of 4 samples {SEEN}."]
        one.predict_and_score(loader)
        assert warnings(caplog) == [f"1 of 2 samples {SEEN}."]
        one.predict([mixed[3]])
        assert warnings(caplog) == [f"1 of 1 sample {SEEN}."]
        one.evaluate(SequenceDataset.from_list(NEW))
        one.predict([sequence for sequence, _ in NEW])
        assert warnings(caplog) == []
    assert (tmp_path / "checkpoint" / "training_inputs.safetensors").stat().st_size <= 200


def test_every_kind_of_data(caplog: pytest.LogCaptureFixture) -> None:
    from ase import Atoms

    from molfun.data import AtomsDataset

    values = np.random.default_rng(0).normal(size=(6, 5, 2))
    series = TimeSeriesDataset.from_arrays(values, labels=np.arange(6.0))
    water = [Atoms("OH2", np.eye(3) * (1 + i / 10)) for i in range(6)]
    atoms = AtomsDataset(water, [{"energy": float(i)} for i in range(6)])
    linear = {"name": "linear", "d_input": 2, "d_model": 4}
    tiny = {"config": {"d_pet": 8, "d_head": 8, "d_feedforward": 8, "num_heads": 1,
                       "num_gnn_layers": 1, "num_attention_layers": 1}}  # fmt: skip
    kinds: list[tuple[Any, MolfunStructureModel]] = [
        (series, MolfunStructureModel("timeseries", config=linear, head="regression")),
        (AffinityDataset.synthetic(6, length=5), MolfunStructureModel("openfold", config="tiny",
                                                                      head="affinity")),
        (atoms, MolfunStructureModel("pet", backbone_config={**tiny, "atomic_types": [1, 8]},
                                     head="energy")),
    ]  # fmt: skip
    for data, model in kinds:
        fit(model, data.subset([0, 1, 2, 3]), data.subset([3, 4]))
        assert (
            "1 of 2 validation samples are also in the training set: metrics on them say nothing "
            "about new ones."
        ) in warnings(caplog)
        model.evaluate(data.subset([2, 3, 4, 5]))
        assert f"2 of 4 samples {SEEN}." in warnings(caplog)


def test_one_input_with_several_labels(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [*[("MKVA", float(i)) for i in range(60)], ("MKVC", 1.0), ("MKVC", 1.0)]
    model = esm()
    warnings(caplog)
    fit(model, SequenceDataset.from_list(pairs))
    assert warnings(caplog) == [
        "60 training samples have the same input as another one, but a different label: no model "
        "can be right on both. Average repeated measurements, or check the table."
    ]
    model.evaluate(SequenceDataset.from_list([("GG", 1.0), ("GG", 2.0)]))
    assert warnings(caplog)[0].startswith(
        "2 samples have the same input as another one, but a different"
    )


@pytest.mark.parametrize(
    ("column", "values", "held"),
    [("split", ["train", "Train", "val", "test"], 2), ("subset", ["train"] * 4, 0),
     ("is_test", [0, 0, 1, 0], 1), ("is_train", ["True", "False", "True", "True"], 1),
     ("stage", ["train", "", "test", "dev"], 2), ("family", ["a", "b", "test", "train"], 0)],
)  # fmt: skip
def test_a_split_that_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, values: list[Any], held: int
) -> None:
    frame = pd.DataFrame(PAIRS, columns=["sequence", "target"]).assign(**{column: values})
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = SequenceDataset.from_csv(tmp_path / "a.csv")
    model = esm()
    warnings(caplog)
    fit(model, data)
    text = f"The column '{column}' assigns {held} of 4 training samples to another part of the data"
    found = warnings(caplog)
    assert (len(found) == 1 and found[0].startswith(text)) if held else not found


def test_a_second_fit(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = esm()
    fit(model, SequenceDataset.from_list(PAIRS), output_dir=tmp_path)
    warnings(caplog)
    fit(model, SequenceDataset.from_list(PAIRS), output_dir=tmp_path, resume=True)
    assert warnings(caplog) == []
    fit(model, SequenceDataset.from_list(NEW))
    assert warnings(caplog) == [
        "This model was trained by 2 fits already and continues from its weights. To start "
        "from new ones, as each fold of a cross-validation must, build a new MolfunStructureModel."
    ]
    model.evaluate(SequenceDataset.from_list([*PAIRS, *NEW]))
    assert warnings(caplog) == [f"6 of 6 samples {SEEN}."]


def test_fits_that_failed_before_they_trained(caplog: pytest.LogCaptureFixture) -> None:
    model, data = esm(), SequenceDataset.from_list(PAIRS)
    for options in ({"precision": "fp7"}, {"strategy": "head_onyl"}, {"val_loader": []}):
        with pytest.raises(MolfunError):
            model.fit(data, **{"strategy": "head_only", "epochs": 1, **options})
    with pytest.raises(MolfunError):
        model.fit(SequenceDataset.from_list([("MKV", None)]), strategy="head_only", epochs=1)
    assert (model.n_fits, len(model.training_inputs)) == (0, 0)
    warnings(caplog)
    fit(model, data)
    assert warnings(caplog) == []
    assert (model.n_fits, len(model.training_inputs)) == (1, len(PAIRS))


def test_a_fit_that_failed_while_it_trained_counts() -> None:
    class Stop(Callback):
        def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
            raise KeyError("stop")

    model = esm()
    with pytest.raises(KeyError):
        model.fit(SequenceDataset.from_list(PAIRS), strategy="head_only", epochs=1,
                  callbacks=[Stop()])  # fmt: skip
    assert (model.n_fits, len(model.training_inputs)) == (1, len(PAIRS))


def test_a_head_that_was_not_trained(caplog: pytest.LogCaptureFixture) -> None:
    model = esm()
    warnings(caplog)
    model.evaluate([Sample(id="a", sequence="MKV", target=1.0)])
    assert warnings(caplog) == ["The head has not been trained: its predictions mean nothing yet."]
