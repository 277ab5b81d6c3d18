"""The report of a folder of predicted structures: table, 3D views by pLDDT, predicted errors."""

from __future__ import annotations

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_text
from molfun._paths import as_path
from molfun.errors import RunError
from molfun.report import coordinates
from molfun.report.blocks import Figure, Model3D, Section, Structures, Table, Text
from molfun.report.figures import COLOURS, INK, plot
from molfun.report.numbers import number
from molfun.report.page import page
from molfun.report.sections.structures import LEGENDS, MOST_TEXT, WORDS
from molfun.runs.folder import REPORT
from molfun.structures import files
from molfun.structures.plots import BANDS
from molfun.text import counted

SHOWN = 6
"""Structures that are shown in 3D, most confident first."""
MOST_ROWS = 200
"""Rows of the table; a folder may hold thousands of structures."""
HEADINGS = {
    "length": "residues",
    "chains": "chains",
    "plddt": "pLDDT",
    "ptm": "pTM",
    "iptm": "ipTM",
    "confidence": "confidence",
    "member": "member",
    "spread": "spread (Å)",
}
"""Columns of the summary that are shown, and their headings."""


def is_folds(path: str | Path) -> bool:
    """Return whether a folder holds predicted structures and their summary."""
    return bool(_summary(as_path(path)))


def write_fold_report(path: str | Path) -> Path:
    """Write ``report.html`` into a folder of predicted structures, and return its path.

    Parameters
    ----------
    path
        Folder that ``molfun fold`` or ``molfun predict --structures`` wrote.

    Raises
    ------
    RunError
        If the folder holds no such structures, or cannot be written.
    MissingDependencyError
        Without jinja2 or matplotlib.
    """
    folder = as_path(path)
    rows = _summary(folder)
    if not rows:
        raise RunError(f"{path} holds no {files.SUMMARY} of predicted structures.")
    shown = _shown(folder, rows)
    sections = [_table(rows, shown)]
    if shown:
        sections += [_views(shown), _confidence(shown)]
    title = f"{folder.resolve().name}: {counted(len(rows), 'predicted structure')}"
    write_text(folder / REPORT, page(title, sections, kicker="Molfun fold"))
    return folder / REPORT


def _summary(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the summary, as texts; empty if there is none of structures."""
    try:
        with (folder / files.SUMMARY).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            known = set(files.COLUMNS) <= set(reader.fieldnames or ())
            return list(reader) if known else []
    except (OSError, ValueError, csv.Error):
        return []


class _Shown:
    """A structure that is shown: its files, read."""

    def __init__(self, folder: Path, name: str, text: str) -> None:
        stem = files.file_stem(name)
        self.name, self.text = name, text
        stored = (folder / f"{stem}{files.CONFIDENCE}").read_text(encoding="utf-8")
        self.confidence: dict[str, Any] = json.loads(stored)
        self.plddt = np.array(self.confidence["residue_plddt"], np.float64)
        spread = self.confidence.get("residue_spread")
        self.spread = None if spread is None else np.array(spread, np.float64)
        chains = self.confidence["chains"]
        self.edges = [i for i in range(1, len(chains)) if chains[i] != chains[i - 1]]
        self.pae: np.ndarray | None = None
        errors = folder / f"{stem}_pae.npz"
        if errors.is_file():
            with np.load(errors) as stored_errors:
                self.pae, self.max_pae = stored_errors["pae"], float(stored_errors["max_pae"])


def _shown(folder: Path, rows: Sequence[Mapping[str, str]]) -> list[_Shown]:
    """Return the most confident structures whose coordinates have room in the page."""
    found: list[_Shown] = []
    size = 0
    for row in rows[: 3 * SHOWN]:
        made = _read(folder, row["id"]) if row["confidence"] else None
        # a large one leaves room for the others
        if made is not None and size + len(made.text) <= MOST_TEXT and len(found) < SHOWN:
            size += len(made.text)
            found.append(made)
    return found


def _read(folder: Path, name: str) -> _Shown | None:
    """Return a structure; None if its files are not there or cannot be read."""
    stem = files.file_stem(name)
    # structures of a large run lie in numbered folders
    places = [folder, *sorted(folder.glob("*-of-*"))]
    place = next((p for p in places if (p / f"{stem}.cif").is_file()), None)
    if place is None:
        return None
    # gemmi raises RuntimeError and ValueError for files that changed since they were written
    with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError, TypeError):
        structure, plddt = coordinates.read(place / f"{stem}.cif")
        text, _ = coordinates.coloured(structure, None, None, plddt=plddt)
        return _Shown(place, name, text)
    return None


# Sections


def _table(rows: Sequence[Mapping[str, str]], shown: Sequence[_Shown]) -> Section:
    """Return the summary, with the model and all notes."""
    names = [name for name in HEADINGS if name in rows[0]]
    cells = [[row["id"], *(_cell(name, row[name]) for name in names)] for row in rows[:MOST_ROWS]]
    blocks: list[Any] = [
        Table(
            ["id", *(HEADINGS[name] for name in names)],
            cells,
            "Most confident first: by 0.8 ipTM + 0.2 pTM for several chains, else by pLDDT / 100.",
        )
    ]
    if len(rows) > MOST_ROWS:
        blocks.append(Text(f"... and {len(rows) - MOST_ROWS:,} more in {files.SUMMARY}", "note"))
    blocks += [Text(sentence, "note") for sentence in _notes(rows)]
    if shown:
        made = shown[0].confidence
        blocks.append(Text(f"{made['model']}, weights {made['weights']}.", "note"))
    return Section("Structures", blocks)


def _cell(name: str, text: str) -> str:
    if not text or name in ("length", "chains", "member"):
        return text or "-"
    return number(float(text))


def _notes(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield each sentence of the column of notes once, with the number of its structures."""
    split = (note.strip().rstrip(".") for row in rows for note in row["notes"].split(". "))
    for note, n in Counter(filter(None, split)).items():
        whole = "all" if n == len(rows) else f"{n:,} of {len(rows):,}"
        yield f"Note on {whole}: {note}."


def _views(shown: Sequence[_Shown]) -> Section:
    models = [Model3D(_caption(one), one.text, "plddt") for one in shown]
    caption = f"Main chain of the most confident. Drag to turn, scroll to zoom. {WORDS['plddt']}"
    return Section("In three dimensions", [Structures(models, caption, LEGENDS["plddt"])])


def _caption(one: _Shown) -> str:
    scores = {"pLDDT": "plddt", "pTM": "ptm", "ipTM": "iptm"}
    known = {name: one.confidence[key] for name, key in scores.items()}
    words = [f"{name} {number(float(v))}" for name, v in known.items() if v is not None]
    if "members" in one.confidence:
        n = len(one.confidence["members"])
        words.append(f"member {one.confidence['member']} of {n}")
    return f"{one.name}: {', '.join(words)}"


def _confidence(shown: Sequence[_Shown]) -> Section:
    return Section("Confidence", [block for one in shown for block in _figures(one)])


def _figures(one: _Shown) -> Iterator[Figure]:
    words = f"{one.name}: pLDDT of each residue"
    with plot() as drawn:
        _draw_plddt(drawn.axes[0], one)
    if one.spread is not None:
        words += ", and its distance from the other models of the ensemble"
    yield Figure(drawn.svg, f"{words}.")
    if one.pae is not None:
        with plot() as drawn:
            _draw_pae(drawn.figure, drawn.axes[0], one)
        yield Figure(
            drawn.svg,
            f"{one.name}: predicted aligned error in Å, of the residue in the column where the "
            f"frame of the residue in the row is aligned.",
        )


def _draw_plddt(axes: Any, one: _Shown) -> None:
    n = len(one.plddt)
    for low, high, colour, _ in BANDS:
        axes.axhspan(low, high, color=colour, alpha=0.25, lw=0)
    places = np.arange(1, n + 1)
    axes.plot(places, one.plddt, color=INK, lw=1.2, marker="." if n < 20 else "")
    axes.set(xlabel="Residue", ylabel="pLDDT", ylim=(0, 100), xlim=(0.5, n + 0.5))
    for edge in one.edges:
        axes.axvline(edge + 0.5, color=INK, lw=0.8, ls="--")
    if one.spread is not None:
        other = axes.twinx()
        other.plot(places, one.spread, color=COLOURS[1], lw=1.2, ls=":")
        other.set(ylabel="Spread (Å)", ylim=(0, None))
        other.grid(visible=False)


def _draw_pae(figure: Any, axes: Any, one: _Shown) -> None:
    assert one.pae is not None
    n = len(one.pae)
    extent = (0.5, n + 0.5, n + 0.5, 0.5)
    image = axes.imshow(one.pae, cmap="Greens_r", vmin=0, vmax=one.max_pae, extent=extent)
    for edge in one.edges:
        axes.axvline(edge + 0.5, color=INK, lw=0.8)
        axes.axhline(edge + 0.5, color=INK, lw=0.8)
    axes.set(xlabel="Scored residue", ylabel="Aligned residue")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="Predicted aligned error (Å)")
