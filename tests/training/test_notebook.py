"""What a notebook shows of a fit: a bar that moves, then the table of its epochs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from molfun import HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
from molfun.training import History, job, notebook


class Cell:
    """What IPython's ``display`` returns: the output of a cell, which can be replaced."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(bundle["text/html"])


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    display = pytest.importorskip("IPython.display")
    found = Cell()

    def show(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert display_id
        found.update(bundle, raw=raw)
        return found

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(job, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook, "SECONDS", 0.0)
    return found


def fitted(epochs: int) -> History:
    data = SequenceDataset.from_list([("MKVA" * (i + 1), float(i)) for i in range(4)])
    model = MolfunStructureModel("esm2", config="esm2_t2_d16_h2", head="regression", device="cpu")
    return model.fit(data, data, strategy=HeadOnlyFinetune(), epochs=epochs)


def test_a_bar_moves_and_the_table_stays(cell: Cell) -> None:
    history = fitted(2)
    values = [int(v) for text in cell.shown for v in re.findall(r'value="(\d+)"', text)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 2)
    assert "<progress" not in cell.shown[-1]
    assert cell.shown[-1] == history._repr_html_()


def test_nothing_is_shown_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert not notebook.in_notebook()
    fitted(1)
    assert capsys.readouterr().out == ""


def test_a_history_is_a_table_in_three_digits() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "train_loss": 1.23456789, "val_loss": 2.0, "val/<b>": float("nan")},
        {"epoch": 2, "train_loss": 1.0, "val_loss": 0.98765432, "val/<b>": 4665.4321},
    ]
    text = History(rows)._repr_html_()
    assert "Best epoch: 2 (val/loss)" in text
    assert [c for c in re.findall(r"<td>(.*?)</td>", text) if c.strip()] == [
        "1", "1.23", "2", "undefined", "2", "1", "0.988", "4665",
    ]  # fmt: skip
    assert "&lt;b&gt;" in text
    assert "No epoch" in History()._repr_html_()
