"""The model card: task, data, results with intervals, limits; no counters and no long numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from finished_runs import MATHS, SCRIPT, evaluation

from molfun import FullFinetune, MolfunStructureModel, SequenceDataset
from molfun.runs.card import card_text, write_card


def test_the_card_of_every_family(family: tuple[str, Path]) -> None:
    name, run = family
    card = (run / "checkpoint/README.md").read_text(encoding="utf-8")
    verdict = json.loads((run / "evaluation.json").read_text())["verdict"]
    assert verdict in card
    data = "data.xyz" if name == "atoms" else "data.csv"
    assert re.search(rf"- `{re.escape(data)}` \(sha256 `[0-9a-f]{{64}}`\)", card)
    assert re.search(r"- samples: \d+ training, \d+ validation, \d+ test", card)
    assert "- split: random, seed 42" in card
    assert "MolfunStructureModel.from_checkpoint" in card
    assert "Nothing is known about samples unlike those" in card
    results = card.partition("## Results")[2].partition("## Limits")[0]
    assert not re.search(r"\d\.\d{5,}", results)
    assert not re.search(r"^\| (lr|steps|skipped|epoch|train_loss) ", card, re.MULTILINE)
    # the card is outside the manifest, so that writing it again leaves a good checkpoint
    MolfunStructureModel.from_checkpoint(run / "checkpoint", device="cpu")


def test_a_card_without_a_run_says_what_is_unknown(tmp_path: Path) -> None:
    data = SequenceDataset.from_list([("MKVA" * (i + 1), float(i)) for i in range(6)])
    model = MolfunStructureModel("esm2", config="esm2_t2_d16_h2", head="regression", device="cpu")
    model.fit(data, data, strategy=FullFinetune(), epochs=1, output_dir=tmp_path)
    card = (tmp_path / "checkpoint/README.md").read_text(encoding="utf-8")
    assert "Task: regression, one label per sequence." in card
    assert re.search(r"^\| RMSE \| \d\.\d{1,2} \|$", card, re.MULTILINE)
    assert "Validation also chose the epoch; no baseline was computed." in card
    assert "Trained on sequences given in Python" in card
    assert "| lr |" not in card


def test_few_of_a_class_are_a_limit_and_a_threshold_is_a_result() -> None:
    """The limits say what the verdict says, however many labels there are."""
    found = evaluation() | {
        "outcome": "too few",
        "threshold": {"value": 0.2345, "metrics": {"balanced_accuracy": 0.9, "mcc": None}},
    }
    meta = {
        "backbone": {"name": "esm2", "weights": None, "fingerprint": "a1"}, "head": {"name": "mlp"},
        "task": {"name": "binary"}, "strategy": None, "molfun_version": "1", "result": {},
    }  # fmt: skip
    card = card_text(meta, evaluation=found)
    assert "- Too few samples were measured: nothing can be concluded." in card
    assert (
        "From the probability 0.234 of the positive class, the threshold chosen on validation, the "
        "test part has balanced accuracy 0.9, MCC undefined."
    ) in card
    found["outcome"], found["parts"]["test"]["n_labels"] = "better", 5
    assert "nothing can be concluded" not in card_text(meta, evaluation=found)


def test_baselines_and_limits_are_named(written: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(written, run)
    (run / "evaluation.json").write_text(json.dumps(evaluation()))
    meta = json.loads((run / "checkpoint/meta.json").read_text())
    meta["backbone"]["weights"] = "esm2.pt"
    (run / "checkpoint/meta.json").write_text(json.dumps(meta))
    write_card(run, run / "checkpoint/README.md", {"data": "a.csv", "split": "identity", "seed": 3})
    card = (run / "checkpoint/README.md").read_text(encoding="utf-8")
    assert "| Spearman | 0.591 [0.511, 0.671] | 0.712 [0.632, 0.792] |" in card
    assert "- A simple baseline does as well: see the results." in card
    assert "The published weights are under the MIT licence (ESM-2, Lin et al. 2023)" in card
    assert "- split: identity, seed 3" in card
    own = {"split": "identity", "seed": 3, "test": "t.csv"}
    write_card(run, run / "checkpoint/README.md", own)
    card = (run / "checkpoint/README.md").read_text(encoding="utf-8")
    assert "- split within `data`: identity, seed 3\n- the test part is a file of its own" in card
    assert SCRIPT not in card
    assert f"`{MATHS.replace('<', '&lt;')}`" in card
