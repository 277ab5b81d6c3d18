"""Sequences with labels, from the command line to the predictions file and back."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result

from molfun import HeadOnlyFinetune, MolfunStructureModel, Sample
from molfun.cli.console import ConsoleProgress

Command = Callable[..., Result]

N = 20
RNG = np.random.default_rng(0)
SEQUENCES = ["".join(RNG.choice(list("ACDEFGHIKLMNPQRSTVWY"), 6 + i % 5)) for i in range(N)]
CLASSES = [["coil", "helix", "sheet"][i % 3] for i in range(N)]
SECONDARY = [
    "".join("CEH"[(i + j) // 2 % 3] for j in range(len(s))) for i, s in enumerate(SEQUENCES)
]
MASKS = ["00" + "1" * (len(s) - 2) for s in SEQUENCES]

TASKS: dict[str, tuple[list[str], tuple[object, ...]]] = {
    "regression": ([f"{len(s) / 2 - i % 3}" for i, s in enumerate(SEQUENCES)], ()),
    "binary": (["yes" if i % 3 else "no" for i in range(N)], ("--task", "binary")),
    "multiclass": (CLASSES, ("--task", "multiclass", "--class-weight", "balanced")),
    "multilabel": (
        [["a;b", "b", "", "a"][i % 4] for i in range(N)],
        ("--task", "multilabel", "--class-weight", "balanced"),
    ),
    "residue_multiclass": (SECONDARY, ("--head", "conv", "--mask-column", "mask")),
    "residue_regression": (
        [" ".join(str(j - i / 2) for j in range(len(s))) for i, s in enumerate(SEQUENCES)],
        ("--head", "mlp", "--level", "residue"),
    ),
}
"""Labels and flags by what is predicted."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


NEAR = ("nearest_id", "identity", "distance")
"""Columns that tell how near a sample is to the training set."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(folder: Path) -> Callable[..., list[dict[str, object]]]:
    """Write ``data.csv``: an id, the sequence, the label, its mask, and the part it belongs to."""

    def write(labels: list[str], name: str = "data.csv") -> list[dict[str, object]]:
        part = ["train"] * 12 + ["val"] * 5 + ["test"] * 3
        rows: list[dict[str, object]] = [
            {"name": f"p{i}", "sequence": SEQUENCES[i], "target": labels[i], "mask": MASKS[i],
             "split": part[i]}
            for i in range(N)
        ]  # fmt: skip
        write_rows(folder / name, rows)
        return rows

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[object, Result]]:
    """Where runs that tests share are kept, and what they said."""
    return tmp_path_factory.mktemp("finished"), {}


@pytest.fixture
def fit(molfun: Command, folder: Path, finished: tuple[Path, dict[object, Result]]) -> Command:
    """Fine-tune the smallest ESM-2 on ``data.csv``: ``fit("--task", "binary")``.

    Where the table is the only file, the folder of the same command is copied if it ran before.
    """
    store, said = finished

    def train(*arguments: object, strategy: str) -> Result:
        return molfun(
            "fine-tune", "--backbone", "esm2", "--preset", "esm2_t1_d16_h2", "--data", "data.csv",
            "--id-column", "name", "--split", "column", "--device", "cpu", "--epochs", 2,
            "--accum", 3, "--batch-size", 2, "--strategy", strategy, "--output", "run", *arguments,
        )  # fmt: skip

    def run(*arguments: object, strategy: str = "head_only") -> Result:
        if [file.name for file in folder.iterdir()] != ["data.csv"]:
            return train(*arguments, strategy=strategy)
        key = arguments, strategy, (folder / "data.csv").read_bytes()
        if key not in said:
            result = train(*arguments, strategy=strategy)
            if result.exit_code:
                return result
            shutil.copytree(folder / "run", store / f"{len(said)}")
            said[key] = result
        else:
            shutil.copytree(store / f"{list(said).index(key)}", folder / "run")
        return said[key]

    return run


def printed(result: Result, begin: str) -> str:
    """Metrics behind the one line that begins so."""
    lines = [line for line in result.stdout.splitlines() if line.startswith(begin)]
    assert len(lines) == 1, result.output
    return lines[0].split(": ", 1)[1]


def judged(molfun: Command, folder: Path, data: str) -> tuple[str, dict[str, float | None]]:
    """What evaluate prints without the loss, and all it writes."""
    result = molfun(
        "evaluate",
        "run/checkpoint",
        "--data",
        data,
        "--batch-size",
        2,
        "--output",
        "metrics.json",
        "--overwrite",
    )
    assert result.exit_code == 0, result.output
    (line,) = [text for text in result.stdout.splitlines() if "loss=" in text]
    line = line.split(": ", 1)[1]
    loss, _, rest = line.partition("  ")
    assert loss.startswith("loss=")
    return rest, json.loads((folder / "metrics.json").read_text())


# From training to evaluation


@pytest.mark.parametrize("name", TASKS)
def test_a_run_is_reproduced_from_its_checkpoint(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path, name: str
) -> None:
    labels, arguments = TASKS[name]
    rows = table(labels)
    result = fit(*arguments)
    assert result.exit_code == 0, result.output
    assert "Data: 12 train / 5 val / 3 test (column split of data.csv)" in result.stdout
    best = min(rows_of(folder / "run/history.csv"), key=lambda row: float(row["val_loss"]))

    for part, begin in (("val", "Validation (best epoch"), ("test", "Test")):
        chosen = [row for row in rows if row["split"] == part]
        write_rows(folder / f"{part}.csv", chosen)
        shown, metrics = judged(molfun, folder, f"{part}.csv")
        assert shown == printed(result, begin)
        if part == "val":
            assert metrics["loss"] == float(best["val_loss"])
        result_of_predict = molfun(
            "predict", "run/checkpoint", "--data", f"{part}.csv", "--batch-size", 2, "--overwrite"
        )
        assert result_of_predict.exit_code == 0, result_of_predict.output
        ours, theirs = (
            rows_of(folder / p) for p in ("predictions.csv", f"run/predictions_{part}.csv")
        )
        assert [row["name"] for row in theirs] == [row["name"] for row in chosen]
        for row in (*ours, *theirs):
            row.pop("target")  # masked in the one, as it was in the other
            row.pop("mask", None)  # a column like others where no labels are read
        assert ours == theirs


@pytest.mark.parametrize("name", TASKS)
def test_the_predictions_of_a_run_are_a_table_to_evaluate(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path, name: str
) -> None:
    labels, arguments = TASKS[name]
    table(labels)
    result = fit(*arguments)
    shown, metrics = judged(molfun, folder, "run/predictions_val.csv")
    assert shown == printed(result, "Validation")
    best = min(rows_of(folder / "run/history.csv"), key=lambda row: float(row["val_loss"]))
    assert metrics["loss"] == float(best["val_loss"])


@pytest.mark.parametrize("strategy", ["head_only", "lora", "partial", "full"])
def test_every_strategy_trains_sequences(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path, strategy: str
) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    blocks = ("--unfreeze-blocks", 1) if strategy == "partial" else ()
    result = fit(*arguments, *blocks, strategy=strategy)
    assert result.exit_code == 0, result.output
    model = MolfunStructureModel.from_checkpoint("run/checkpoint", device="cpu")
    assert (model.strategy.name, model.task.classes) == (strategy, ["coil", "helix", "sheet"])
    beyond = model.count_parameters(trainable=True) - sum(
        p.numel() for p in model.head.parameters()
    )
    assert (beyond > 0) == (strategy != "head_only")
    assert len({row["train_loss"] for row in rows_of(folder / "run/history.csv")}) == 2
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


def test_a_table_and_a_fasta_file_give_the_same_predictions(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    records = "".join(f">p{i} some words\n{s[:4]}\n{s[4:]}\n" for i, s in enumerate(SEQUENCES))
    (folder / "new.fasta").write_text(records)
    for data, batch, output in (
        ("data.csv", 1, "one.csv"), ("new.fasta", 1, "two.csv"), ("data.csv", 7, "three.csv"),
    ):  # fmt: skip
        result = molfun(
            "predict", "run/checkpoint", "--data", data, "--batch-size", batch, "--output", output
        )
        assert result.exit_code == 0, result.output
        assert f"20 predictions written to {output}" in result.stdout
    one, two, three = (rows_of(folder / name) for name in ("one.csv", "two.csv", "three.csv"))
    assert [row["id"] for row in two] == [row["name"] for row in one]
    assert all(row["target"] == "" for row in two)
    for ours, theirs, together in zip(one, two, three, strict=True):
        assert ours["prediction"] == theirs["prediction"] in ("coil", "helix", "sheet")
        probs = [float(v) for k, v in ours.items() if k.startswith("prob")]
        assert sum(probs) == pytest.approx(1)
        assert probs == [float(v) for k, v in theirs.items() if k.startswith("prob")]
        assert probs == pytest.approx(
            [float(v) for k, v in together.items() if k.startswith("prob")], abs=1e-5
        )


@pytest.mark.parametrize("name", ["regression", "residue_multiclass", "residue_regression"])
def test_other_labels_are_predicted_from_a_fasta_file(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path, name: str
) -> None:
    labels, arguments = TASKS[name]
    table(labels)
    assert fit(*arguments).exit_code == 0
    (folder / "new.fa").write_text(">q\nMKVAC\n")
    assert molfun("predict", "run/checkpoint", "--data", "new.fa").exit_code == 0
    (row,) = rows_of(folder / "predictions.csv")
    assert (row["id"], row["sequence"], row["target"]) == ("q", "MKVAC", "")
    if name == "residue_multiclass":
        assert len(row["prediction"]) == 5
        assert set(row["prediction"]) <= set("CEH")
    else:
        values = [float(value) for value in row["prediction"].split()]
        assert len(values) == (1 if name == "regression" else 5)


def test_masked_residues_neither_train_nor_count(
    fit: Command, table: Callable[..., object], folder: Path
) -> None:
    """Other labels under the mask change nothing."""
    _, arguments = TASKS["residue_multiclass"]
    results = []
    for letter in "CE":
        table([letter * 2 + label[2:] for label in SECONDARY])
        result = fit(*arguments, "--overwrite")
        assert result.exit_code == 0, result.output
        results.append((printed(result, "Validation"), (folder / "run/history.csv").read_text()))
    assert results[0] == results[1]
    metrics = dict(item.split("=") for item in results[0][0].split())
    assert metrics["q3"] == metrics["accuracy"]
    for row in rows_of(folder / "run/predictions_val.csv"):
        assert row["target"].startswith("??")
        assert "?" not in row["target"][2:]


def test_the_crop_of_training_is_used_for_prediction(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["residue_regression"][0])
    assert fit(*TASKS["residue_regression"][1], "--max-length", 5).exit_code == 0
    for row in rows_of(folder / "run/predictions_val.csv"):
        assert len(row["prediction"].split()) == 5
        assert len(row["target"].split()) == len(row["sequence"]) > 5
    (folder / "new.fa").write_text(f">q\n{SEQUENCES[4]}\n")
    assert molfun("predict", "run/checkpoint", "--data", "new.fa").exit_code == 0
    assert len(rows_of(folder / "predictions.csv")[0]["prediction"].split()) == 5


# What is in the files


def test_columns_keep_the_names_of_the_table(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    rows = table(TASKS["regression"][0])
    renamed = [{"name": r["name"], "seq": r["sequence"], "fitness": r["target"],
                "split": r["split"]} for r in rows]  # fmt: skip
    write_rows(folder / "data.csv", renamed)
    result = fit("--sequence-column", "seq", "--target-column", "fitness")
    assert result.exit_code == 0, result.output
    assert list(rows_of(folder / "run/predictions_val.csv")[0]) == [
        "name", "seq", "fitness", "prediction", *NEAR, "split",
    ]  # fmt: skip
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")
    assert [(row["name"], row["split"]) for row in rows_of(folder / "run/splits.csv")] == [
        (row["name"], row["split"]) for row in renamed
    ]


def test_settings_name_classes_and_columns(
    fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    stored = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert (stored["task"], stored["class_weight"]) == ("multiclass", "balanced")
    model = MolfunStructureModel.from_checkpoint("run/checkpoint", device="cpu")
    counts = [sum(label == name for label in labels[:12]) for name in model.task.classes]
    assert model.task.weight == pytest.approx([12 / (3 * count) for count in counts])
    assert model.data_settings["labels"] == "class"
    assert model.data_settings["id_column"] == "name"


def test_rows_without_ids_are_numbered(
    molfun: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["regression"][0])
    result = molfun(
        "fine-tune", "--backbone", "esm2", "--preset", "esm2_tiny", "--data", "data.csv",
        "--strategy", "head_only", "--epochs", 1, "--device", "cpu", "--output", "run",
        "--val-frac", 0.2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Data: 14 train / 4 val / 2 test (random split of data.csv)" in result.stdout
    assert all(row["id"].startswith("seq_") for row in rows_of(folder / "run/splits.csv"))
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


def test_columns_of_probabilities_are_named_after_the_classes(
    fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    names = list(rows_of(folder / "run/predictions_val.csv")[0])
    assert names[-8:] == ["prob_coil", "prob_helix", "prob_sheet", *NEAR, "mask", "split"]


@pytest.mark.parametrize(
    ("labels", "arguments"),
    [
        (["1" if i % 3 else "-1" for i in range(N)], ("--task", "binary")),
        (["+1" if i % 3 else "-1" for i in range(N)], ("--task", "binary")),
        ([label.replace("C", "-") for label in SECONDARY], ("--head", "conv")),
        (["=yes" if i % 3 else "@no" for i in range(N)], ("--task", "binary")),
        ([["=a;+b", "+b", "", "=a"][i % 4] for i in range(N)], ("--task", "multilabel")),
    ],
)
def test_labels_that_begin_with_a_sign_are_read_back(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path,
    labels: list[str], arguments: tuple[object, ...],
) -> None:  # fmt: skip
    table(labels)
    result = fit(*arguments)
    assert result.exit_code == 0, result.output
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


def test_numbers_of_masked_residues_are_written(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["residue_regression"][0])
    result = fit("--head", "mlp", "--level", "residue", "--mask-column", "mask")
    assert result.exit_code == 0, result.output
    assert "TypeError" not in result.stderr
    for row in rows_of(folder / "run/predictions_val.csv"):
        assert row["target"].startswith("nan nan ")
        assert "nan" not in row["target"][7:]
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


@pytest.mark.parametrize("name", ["residue_multiclass", "residue_regression"])
def test_a_sequence_without_labels_is_written_and_read_back(
    molfun: Command, fit: Command, table: Callable[..., list[dict[str, object]]], folder: Path,
    name: str,
) -> None:  # fmt: skip
    labels, arguments = TASKS[name]
    rows = table(labels)
    rows[13]["mask"] = "0" * len(SEQUENCES[13])
    write_rows(folder / "data.csv", rows)
    result = fit(*arguments, "--mask-column", "mask")
    assert result.exit_code == 0, result.output
    targets = [row["target"] for row in rows_of(folder / "run/predictions_val.csv")]
    assert targets[1] == " ".join("?" * len(SEQUENCES[13]))
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


def test_a_label_column_called_prediction_stays(
    molfun: Command, fit: Command, table: Callable[..., list[dict[str, object]]], folder: Path
) -> None:
    rows = table(TASKS["regression"][0])
    write_rows(folder / "data.csv", [{**row, "prediction": row["target"]} for row in rows])
    result = fit("--target-column", "prediction")
    assert result.exit_code == 0, result.output
    written = rows_of(folder / "run/predictions_val.csv")
    assert [row["prediction"] for row in written] == [row["target"] for row in rows[12:17]]
    assert all(float(row["prediction_molfun"]) for row in written)
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


def test_label_smoothing_that_no_loss_reads_is_refused(
    fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["regression"][0])
    (folder / "run.yaml").write_text("label_smoothing: 0.1\n")
    result = fit("--config", "run.yaml")
    assert result.exit_code != 0
    assert "label_smoothing is for multiclass, binary; the task is 'regression'." in result.output


def test_class_names_are_no_formulas(
    fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels = [["=SUM(A1)", "@x", "+x"][i % 3] for i in range(N)]
    table(labels)
    assert fit("--task", "multiclass").exit_code == 0
    rows = rows_of(folder / "run/predictions_val.csv")
    assert [row["target"] for row in rows] == [f"'{label}" for label in labels[12:17]]
    assert {row["prediction"][0] for row in rows} == {"'"}
    assert all(name[0].isalpha() for name in rows[0])


def test_one_optional_class(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(["membrane" if i % 2 else "" for i in range(N)])
    result = fit("--task", "multilabel", "--batch-size", 1)
    assert result.exit_code == 0, result.output
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


# Resuming


@pytest.mark.parametrize("name", ["multiclass", "residue_multiclass"])
def test_a_stopped_run_resumes_to_the_same_end(
    fit: Command, molfun: Command, table: Callable[..., object], folder: Path,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    labels, arguments = TASKS[name]
    table(labels)
    assert fit(*arguments, "--epochs", 4, strategy="lora").exit_code == 0
    (folder / "run").rename(folder / "whole")

    def stop(self: ConsoleProgress, row: dict[str, object], improved: bool) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleProgress, "on_epoch_end", stop)
        assert fit(*arguments, "--epochs", 4, strategy="lora").exit_code == 130
    done = len(rows_of(folder / "run/history.csv"))
    assert 1 <= done < 4
    resumed = molfun("fine-tune", "--resume", "--output", "run")
    assert resumed.exit_code == 0, resumed.output
    assert f"resumed after epoch {done}" in resumed.stdout
    for file in ("history.csv", "predictions_val.csv", "predictions_test.csv"):
        assert (folder / "run" / file).read_text() == (folder / "whole" / file).read_text()


def test_batches_by_length(fit: Command, table: Callable[..., object], folder: Path) -> None:
    labels, arguments = TASKS["regression"]
    table(labels)
    result = fit(*arguments, "--group-by-length")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((folder / "run/config.yaml").read_text())["group_by_length"] is True
    (folder / "other.yaml").write_text("group_by_length: false\n")
    result = fit(*arguments, "--resume", "--config", "other.yaml")
    assert result.exit_code == 1
    assert "batches by length: {'batch_size': 2, 'power': 1.0, " in result.stderr


def test_other_labels_are_no_resume(fit: Command, table: Callable[..., object]) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    table([*labels[1:12], labels[0], *labels[12:]])
    result = fit(*arguments, "--resume")
    assert result.exit_code == 1
    assert "labels: " in result.stderr


# Errors


def one_line(result: Result, message: str) -> None:
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("Error:") == 1
    assert "Traceback" not in result.stderr
    assert "run again with --debug" not in result.stderr, "an error nobody thought of"


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("MK1V", "p3 (data.csv, line 5): '1' at position 3 is no amino acid: digit one"),
        (
            "MKVJ",
            "p3 (data.csv, line 5): 'J' at position 4 is no amino acid: it stands for leucine",
        ),
        ("MK*", "p3 (data.csv, line 5): '*' at position 3 is no amino acid: a stop codon"),
        (
            "MK V-",
            "p3 (data.csv, line 5): ' ' at position 3 is no amino acid (and 1 more): a space",
        ),
    ],
)
def test_a_bad_letter_is_named_before_training(
    fit: Command, table: Callable[..., object], folder: Path, sequence: str, message: str
) -> None:
    rows = table(TASKS["regression"][0])
    rows[3]["sequence"] = sequence
    write_rows(folder / "data.csv", rows)
    result = fit()
    one_line(result, message)
    assert "1 sample cannot be used with ESM-2" in result.stderr
    assert "Training for" not in result.stdout
    assert not (folder / "run/checkpoint").exists()


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        ("binary", ("--task", "binary", "--head", "mpl"), "Unknown head 'mpl'; known: affinity,"),
        ("binary", ("--task", "binary", "--level", "pair"), "level: Input should be 'sequence' or"),
        ("binary", ("--head", "conv", "--task", "binary", "--level", "sequence"), "Use head='mlp'"),
        ("regression", ("--task", "regresion"), "Did you mean 'regression'?"),
        (
            "multiclass",
            ("--task", "binary"),
            "A binary task has two classes, found 3 ('coil', 'helix', 'sheet')",
        ),
        ("multiclass", (), "line 2, column target: 'coil' is not a number"),
        ("multiclass", ("--task", "multiclass", "--class-weight", "equal"), "(got 'equal')"),
        ("multiclass", ("--task", "multiclass", "--head", "affinity"), "Use head='mlp'"),
        ("regression", ("--target-column", "taget"), "Did you mean 'target' for 'taget'?"),
        ("regression", ("--id-column", "nam"), "Did you mean 'name' for 'nam'?"),
        ("regression", ("--split-column", "splitt"), "has no column 'splitt' to split by"),
        ("regression", ("--preset", "esm2_t1"), "Unknown ESM-2 config 'esm2_t1'"),
        ("residue_multiclass", ("--head", "conv", "--mask-column", "maks"), "Did you mean 'mask'"),
        (
            "multiclass",
            ("--task", "multiclass", "--level", "residue"),
            "'coil' has 4 labels for a sequence of",
        ),
    ],
)
def test_a_wrong_argument_gets_one_line(
    fit: Command, table: Callable[..., object], folder: Path,
    labels: str, arguments: tuple[object, ...], message: str,
) -> None:  # fmt: skip
    table(TASKS[labels][0])
    one_line(fit(*arguments), message)
    assert not (folder / "run/checkpoint").exists()


def test_an_unknown_task_is_named(fit: Command, table: Callable[..., object]) -> None:
    table(TASKS["binary"][0])
    one_line(fit("--task", "binry"), "Did you mean 'binary'?")
    known = (
        "affinity, binary, confidence, contact, conv, cross_attention, energy, gaussian, linear, "
        "mlp, multiclass, multilabel, multitarget, pair_mlp, quantile, regression, structure"
    )
    one_line(
        fit("--head", "binry"), f"Unknown head 'binry'; known: {known}. Did you mean 'binary'?"
    )


def test_one_class_in_all_rows_is_explained(fit: Command, table: Callable[..., object]) -> None:
    table(["coil"] * N)
    one_line(fit("--task", "multiclass"), "coil")


def test_a_binary_task_with_one_class_names_it(fit: Command, table: Callable[..., object]) -> None:
    table(["yes"] * N)
    one_line(fit("--task", "binary"), "yes")


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("regression", ("--class-weight", "balanced")),
        ("multiclass", ("--task", "multiclass", "--loss", "mae")),
        ("regression", ("--mask-column", "mask")),
    ],
)
def test_a_flag_of_another_task_is_refused(
    fit: Command, table: Callable[..., object], task: str, arguments: tuple[object, ...]
) -> None:
    table(TASKS[task][0])
    one_line(fit(*arguments), arguments[-2].removeprefix("--").replace("-", "_"))


def test_all_flags_of_other_tasks_are_named_at_once(
    fit: Command, table: Callable[..., object]
) -> None:
    table(TASKS["regression"][0])
    result = fit("--class-weight", "balanced", "--mask-column", "mask")
    one_line(result, "class_weight is for binary, multiclass, multilabel; the task is 'regression'")
    assert "mask_column='mask' is for labels of residues (--level residue)" in result.stderr


@pytest.mark.parametrize("row", [14, 18], ids=["validation", "test"])
def test_a_class_that_training_lacks_is_said_and_stops_nothing(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path, row: int
) -> None:
    table([*CLASSES[:row], "turn", *CLASSES[row + 1 :]])
    result = fit("--task", "multiclass", "--class-weight", "balanced")
    assert result.exit_code == 0, result.output
    said = "No training sample has the class 'turn'; the model learns nothing about it."
    assert said in result.stderr
    assert "prob_turn" in rows_of(folder / "run/predictions_test.csv")[0]
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")


def test_what_evaluation_needs(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    (folder / "new.fasta").write_text(">q\nMKV\n")
    (folder / "none.csv").write_text("name,sequence\nq,MKV\n")
    (folder / "blank.csv").write_text("name,sequence,target\nq,MKV,\n")
    (folder / "other.csv").write_text("name,sequence,target\nq,MKV,turn\n")
    (folder / "bad.csv").write_text("name,sequence\nq,MKV\nr,MK?\n")
    for command, data, message in (
        ("evaluate", "new.fasta", "new.fasta has no labels to evaluate against; give a table."),
        ("evaluate", "none.csv", "none.csv has no column 'target'; found 'name', 'sequence'."),
        ("evaluate", "blank.csv", "line 2, column target: '' is blank"),
        ("evaluate", "other.csv", "known: coil, helix, sheet:\n  'turn'"),
        ("evaluate", "absent.csv", "absent.csv does not exist"),
        ("predict", "absent.fasta", "No such file: absent.fasta."),
        ("predict", "bad.csv", "r (bad.csv, line 3): '?' at position 3 is no amino acid"),
    ):
        one_line(molfun(command, "run/checkpoint", "--data", data), message)
    assert not (folder / "predictions.csv").exists()


def test_prediction_does_not_mind_an_unknown_class(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels, arguments = TASKS["multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    (folder / "other.csv").write_text("name,sequence,target\nq,MKV,turn\n")
    result = molfun("predict", "run/checkpoint", "--data", "other.csv")
    assert result.exit_code == 0, result.output


def test_a_table_to_predict_needs_no_ids(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["regression"][0])
    assert fit().exit_code == 0
    (folder / "new.csv").write_text("sequence\nMKV\n")
    result = molfun("predict", "run/checkpoint", "--data", "new.csv")
    assert result.exit_code == 0, result.output
    assert "new.csv has no column 'name': its rows are called seq_1, seq_2" in result.stderr
    assert [row["id"] for row in rows_of(folder / "predictions.csv")] == ["seq_1"]
    (folder / "old.csv").write_text("sequence,target\nMKV,1\n")
    one_line(molfun("evaluate", "run/checkpoint", "--data", "old.csv"), "has no column 'name'")


def test_a_table_without_masks_is_told(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    labels, arguments = TASKS["residue_multiclass"]
    table(labels)
    assert fit(*arguments).exit_code == 0
    (folder / "new.csv").write_text("name,sequence,target\nq,MKV,?EH\n")
    result = molfun("evaluate", "run/checkpoint", "--data", "new.csv")
    assert result.exit_code == 0, result.output
    assert "new.csv has no column 'mask': labels count on every residue" in result.stderr


def test_a_bad_table_is_refused_before_training(
    fit: Command, table: Callable[..., object], folder: Path
) -> None:
    rows = table(TASKS["residue_multiclass"][0])
    rows[2]["target"] = "CE"
    rows[5]["mask"] = "1" * 30
    rows[7]["sequence"] = ""
    write_rows(folder / "data.csv", rows)
    result = fit(*TASKS["residue_multiclass"][1])
    one_line(result, "data.csv has 4 bad rows:")
    assert "line 4, column target: 'CE' has 2 labels for a sequence of 8 residues" in result.stderr
    assert "line 7, column mask: expected 6 of 0 and 1, got 30" in result.stderr
    assert "line 9, column sequence: is blank" in result.stderr
    assert not (folder / "run/checkpoint").exists()


# What a trial by a new user found


@pytest.mark.parametrize("strategy", ["head_only", "lora", "partial", "full"])
def test_a_pretrained_file_leads_to_a_checkpoint_that_loads(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path, strategy: str
) -> None:
    """The file has no contact regression, which starts at random: no part of the identity."""
    table(TASKS["regression"][0])
    result = molfun(
        "pretrain", "--backbone", "esm2", "--preset", "esm2_t1_d16_h2", "--sequences", "data.csv",
        "--max-steps", 2, "--val-frac", 0, "--output", "pre",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    weights = ("--weights", "pre/weights.safetensors")
    result = fit(*weights, "--seed", 7, strategy=strategy)
    assert result.exit_code == 0, result.output
    assert judged(molfun, folder, "run/predictions_val.csv")[0] == printed(result, "Validation")
    moved = folder / "elsewhere.safetensors"
    (folder / "pre/weights.safetensors").rename(moved)
    result = molfun(
        "predict", "run/checkpoint", "--data", "data.csv", "--weights", moved, "--output", "p.csv"
    )
    assert result.exit_code == 0, result.output


def test_other_columns_stay_in_the_predictions(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["regression"][0])
    assert fit().exit_code == 0
    write_rows(
        folder / "new.csv",
        [{"seq": "MKV", "label": "wild type", "count": 3}, {"seq": "ACD", "label": "", "count": 4}],
    )
    result = molfun(
        "predict", "run/checkpoint", "--data", "new.csv", "--sequence-column", "seq",
        "--id-column", "label", "--output", "p.csv",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "the id is blank" in result.stderr
    result = molfun(
        "predict", "run/checkpoint", "--data", "new.csv", "--sequence-column", "seq",
        "--id-column", "count", "--output", "p.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = rows_of(folder / "p.csv")
    columns = ["count", "seq", "target", "prediction", "nearest_id", "identity", "distance"]
    assert list(rows[0]) == [*columns, "label"]
    assert [row["label"] for row in rows] == ["wild type", ""]


@pytest.mark.parametrize(("mask", "refused"), [("01111", True), ("0111111", True), ("11", False)])
def test_short_masks_are_padded_only_if_they_can_be_numbers(
    fit: Command, table: Callable[..., list[dict[str, object]]], folder: Path,
    mask: str, refused: bool,
) -> None:  # fmt: skip
    rows = table(SECONDARY)
    rows[2]["mask"] = mask
    write_rows(folder / "data.csv", rows)
    result = fit("--head", "conv", "--mask-column", "mask")
    if refused:
        assert result.exit_code == 1
        assert f"line 4, column mask: expected 8 of 0 and 1, got {len(mask)}" in result.stderr
    else:
        assert result.exit_code == 0, result.output
        assert "line 4: 2 for 8 residues" in result.stderr


def test_the_positive_class_is_said_and_chosen(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["binary"][0])
    for chosen, arguments in (("yes", ()), ("no", ("--positive-class", "no", "--overwrite"))):
        result = fit("--task", "binary", *arguments)
        assert result.exit_code == 0, result.output
        assert f"{chosen} (positive)" in result.stdout
        rows = rows_of(folder / "run/predictions_val.csv")
        truth = [row["target"] == chosen for row in rows]
        hard = [row["prediction"] == chosen for row in rows]
        both = sum(t and h for t, h in zip(truth, hard, strict=True))
        _, metrics = judged(molfun, folder, "run/predictions_val.csv")
        assert metrics["f1"] == pytest.approx(2 * both / (sum(truth) + sum(hard)))
    result = fit("--task", "binary", "--positive-class", "maybe", "--overwrite")
    assert "--positive-class maybe: the classes are no, yes." in result.stderr


def test_numbers_taken_for_classes_are_suspected(fit: Command, folder: Path) -> None:
    rows = [
        {"name": f"p{i}", "sequence": SEQUENCES[i % N] + "A" * (i // N), "target": f"{i / 7:.4f}",
         "split": "val" if i > 25 else "train"}
        for i in range(30)
    ]  # fmt: skip
    write_rows(folder / "data.csv", rows)
    result = fit("--task", "multiclass")
    assert "30 classes for 26 training samples: are these numbers, for --task" in result.stderr


def test_a_model_card_may_be_edited(
    molfun: Command, fit: Command, table: Callable[..., object], folder: Path
) -> None:
    table(TASKS["regression"][0])
    assert fit().exit_code == 0
    (folder / "run/checkpoint/README.md").write_text("# Mine\n")
    assert molfun("predict", "run/checkpoint", "--data", "data.csv").exit_code == 0


def test_split_group_by_its_column(molfun: Command, tmp_path: Path) -> None:
    import pandas as pd

    letters = "ACDEFGHIKLMN"
    frame = pd.DataFrame(
        {"sequence": [f"MKV{a}" for a in letters], "target": range(12),
         "family": [f"f{i // 3}" for i in range(12)], "name": list(letters)}
    )  # fmt: skip
    frame.to_csv(tmp_path / "a.csv", index=False)
    start = ["fine-tune", "--backbone", "esm2_tiny", "--data", tmp_path / "a.csv", "--strategy",
             "head_only", "--epochs", "1", "--id-column", "name", "--output",
             tmp_path / "run"]  # fmt: skip
    result = molfun(*start, "--split", "group", "--group-column", "family")
    assert result.exit_code == 0, result.stderr
    parts = pd.read_csv(tmp_path / "run" / "splits.csv").merge(frame, on="name")
    assert parts.groupby("family").split.nunique().max() == 1
    result = molfun(*start, "--overwrite", "--split", "group")
    assert result.exit_code == 1
    assert "the table has no column 'group'" in result.stderr
    assert "--group-column NAME (columns: family)" in result.stderr
    result = molfun(*start, "--overwrite", "--group-column", "family")
    assert result.exit_code == 1
    assert "group_column='family' is for split='group', and the split is 'random'" in result.stderr


def test_a_model_of_a_list_of_samples_takes_a_table(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list leaves no settings of its inputs in the checkpoint; the backbone decides."""
    monkeypatch.chdir(tmp_path)
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    samples = [Sample(id=f"s{i}", sequence=s, target=float(i)) for i, s in enumerate(SEQUENCES[:6])]
    model.fit(samples, strategy=HeadOnlyFinetune(), epochs=1, output_dir="run")
    Path("t.csv").write_text("\n".join(["sequence,target", *(f"{s},1" for s in SEQUENCES), ""]))
    done = molfun("predict", "run/checkpoint", "--data", "t.csv", "--output", "p.csv")
    assert done.exit_code == 0, done.output
    assert len(rows_of(Path("p.csv"))) == N
    assert molfun("evaluate", "run/checkpoint", "--data", "t.csv").exit_code == 0
