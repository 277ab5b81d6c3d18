"""Positions that a heat map shows, and those that it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molfun.errors import DataError
from molfun.protein import AMINO_ACIDS
from molfun.report.heat_map import ORDER, draw_heat_map, left_out, scored_places, write_heat_map

figures = pytest.importorskip("matplotlib.figure")

WILD_TYPE = "MKTAYIAKQR"


def matrix(*places: int) -> np.ndarray:
    """Return scores of exchanges for G at these places, and zeros at the wild type."""
    found = np.full((len(WILD_TYPE), 20), np.nan)
    for i, letter in enumerate(WILD_TYPE):
        found[i, AMINO_ACIDS.index(letter)] = 0.0
    for i in places:
        found[i, AMINO_ACIDS.index("G")] = i + 1.0
    return found


def drawn(found: np.ndarray, **options: Any) -> Any:
    figure = figures.Figure(figsize=(6, 4))
    draw_heat_map(figure, found, WILD_TYPE, **options)
    return figure.axes[0]


def test_positions_without_a_value_are_left_out() -> None:
    axes = drawn(matrix(0, 1, 5), offset=10)
    (image,) = axes.images
    shown = np.ma.filled(image.get_array(), np.nan)
    assert shown.shape == (20, 3)
    assert shown[ORDER.index("G")].tolist() == [1.0, 2.0, 6.0]
    # the first one, and that after the gap, which a line marks
    assert [text.get_text() for text in axes.get_xticklabels()] == ["11", "16"]
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5]
    above = axes.child_axes[0]
    assert [text.get_text() for text in above.get_xticklabels()] == ["M", "K", "I"]
    (dots,) = axes.collections
    assert dots.get_offsets()[:, 1].tolist() == [ORDER.index(a) for a in "MKI"]


def test_all_positions_are_drawn_where_all_have_a_value() -> None:
    axes = drawn(matrix(*range(10)))
    assert axes.images[0].get_array().shape == (20, 10)
    assert not axes.lines
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "10"]


def test_entropy_and_rows_follow_the_positions() -> None:
    figure = figures.Figure(figsize=(6, 4))
    entropy = np.arange(10) / 10
    draw_heat_map(figure, matrix(2, 3, 9), WILD_TYPE, entropy=entropy, per_row=2)
    bars = [[bar.get_height() for bar in axes.patches] for axes in figure.axes if axes.patches]
    assert bars == [[0.2, 0.3], [0.9]]


def test_numbers_of_neighbours_do_not_overlap() -> None:
    axes = drawn(matrix(0, 2, 3, 4), offset=5)
    # 7 is left out: 8 follows the gap, and 10 is far enough from it
    assert [text.get_text() for text in axes.get_xticklabels()] == ["6", "8", "10"]
    axes = drawn(matrix(0, 2, 3, 4), offset=6)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["7", "9"]


def test_a_matrix_without_scores_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="A heat map needs a position with a score"):
        write_heat_map(tmp_path / "x.svg", matrix(), WILD_TYPE)
    assert not list(tmp_path.iterdir())


def test_words() -> None:
    assert left_out(10, 10) == ""
    assert left_out(9, 10) == "1 of 10 positions has no value and is left out"
    assert scored_places(matrix(), WILD_TYPE).tolist() == []
    assert scored_places(matrix(0, 9), WILD_TYPE).tolist() == [0, 9]
