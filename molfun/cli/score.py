"""Score predicted structures against references: one pair of files, or two folders."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from molfun._io import write_text
from molfun._paths import as_path
from molfun.cli.command_settings import ScoreSettings
from molfun.cli.console import Progress, say, set_up_logging
from molfun.cli.outputs import check_output
from molfun.data.folders import FolderIndex
from molfun.data.structures import STRUCTURE_SUFFIXES, name_of_file, read_structure
from molfun.errors import DataError, MolfunError, RunError
from molfun.structures.files import numbered_folders
from molfun.structures.scoring.interfaces import interface_rows
from molfun.structures.scoring.score import StructureScores, score
from molfun.text import counted, first_line, three_digits

logger = logging.getLogger(__name__)

SHOWN = ("lddt_ca", "lddt", "tm_score", "gdt_ts", "rmsd", "dockq", "clashes")
"""Scores that the terminal shows of many structures."""


def score_structures(given: Mapping[str, Any]) -> None:
    """Score with the settings of the command line.

    Raises
    ------
    DataError
        If nothing can be compared.
    RunError
        After the scores of the others are written, if some pairs cannot be compared.
    """
    wanted, _ = ScoreSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    pairs = list(_pairs(as_path(wanted.predicted), as_path(wanted.reference)))
    inputs = {"PREDICTED": wanted.predicted, "REFERENCE": wanted.reference}
    for output in (wanted.output, wanted.residues):
        if output is not None:
            check_output(output, inputs, overwrite=wanted.overwrite)
    scored = dict(_scored(pairs))
    if not scored:
        raise DataError("No structure could be scored; the lines above say why.")
    if len(pairs) == 1:
        _say_one(*scored.items())
    else:
        _say_all(scored)
    _write_tables(wanted, scored)
    failed = [name for name, _, _ in pairs if name not in scored]
    if failed:
        raise RunError(
            f"{len(failed)} of {counted(len(pairs), 'structure')} not scored: "
            f"{', '.join(failed[:3])}. The lines above say why; the scores are those of the others."
        )


def _write_tables(wanted: ScoreSettings, scored: Mapping[str, StructureScores]) -> None:
    if wanted.output is not None:
        rows = [
            {"id": name, **found.values, "notes": "; ".join(found.notes)}
            for name, found in scored.items()
        ]
        _write(as_path(wanted.output), rows)
    if wanted.residues is not None:
        residues = [{"id": n, **row} for n, found in scored.items() for row in found.residues]
        _write(as_path(wanted.residues), residues)


def _pairs(predicted: Path, reference: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield the name and both files of each structure; say what only one of the folders holds."""
    _check_both(predicted, reference)
    if not predicted.is_dir():
        yield name_of_file(predicted), predicted, reference
        return
    predictions, references = _places(predicted), _places(reference)
    partners = _partners(sorted(predictions), references)
    for name, partner in partners.items():
        own = predictions[name].find(name, STRUCTURE_SUFFIXES)
        other = references[partner].find(partner, STRUCTURE_SUFFIXES)
        if own is not None and other is not None:
            yield name, own, other
    _say_alone("reference", "structure", predictions.keys() - partners.keys())
    _say_alone("prediction", "reference", references.keys() - set(partners.values()))


def _partners(names: Sequence[str], references: Collection[str]) -> dict[str, str]:
    """Return the reference of each name: the very same one, or one that differs in case alone."""
    folded = {name.casefold(): name for name in references}
    found = {n: n if n in references else folded.get(n.casefold()) for n in names}
    return {name: partner for name, partner in found.items() if partner is not None}


def _say_alone(what: str, of: str, names: Collection[str]) -> None:
    if names:
        say(f"No {what} for {counted(len(names), of)}: {', '.join(sorted(names)[:3])}")


def _places(folder: Path) -> dict[str, FolderIndex]:
    """Return the folder of each structure by its name: a large fold has several.

    Raises
    ------
    DataError
        If two of them hold structures of one name.
    """
    found: dict[str, FolderIndex] = {}
    for place in map(FolderIndex, (folder, *numbered_folders(folder))):
        for name in place.stems(STRUCTURE_SUFFIXES):
            if name in found:
                raise DataError(
                    f"{name} lies both in {found[name].folder} and in {place.folder}. Give one of "
                    f"these folders, or remove what is old."
                )
            found[name] = place
    return found


def _check_both(predicted: Path, reference: Path) -> None:
    for path in (predicted, reference):
        if not path.exists():
            raise DataError(f"{path} does not exist.")
    if predicted.is_dir() != reference.is_dir():
        raise DataError("Give two files, or two folders whose files have the same names.")


def _scored(pairs: Sequence[tuple[str, Path, Path]]) -> Iterator[tuple[str, StructureScores]]:
    """Yield the scores of each pair; name those that cannot be compared."""
    for name, own, other in Progress(pairs, "scoring") if len(pairs) > 1 else pairs:
        try:
            yield name, score(read_structure(own), read_structure(other))
        except MolfunError as error:
            if len(pairs) == 1:
                raise
            logger.warning("%s is left out: %s", name, first_line(error))


def _say_one(item: tuple[str, StructureScores]) -> None:
    name, found = item
    say(name)
    for key, value in found.values.items():
        say(f"  {key:<12} {three_digits(value)}")
    for row in interface_rows(found.interfaces):
        shown = "  ".join(f"{k} {_short(v)}" for k, v in row.items() if k != "chains")
        say(f"  interface {row['chains']}: {shown}")
    for note in found.notes:
        say(f"Note: {note}.")


def _short(value: object) -> str:
    return three_digits(value) if isinstance(value, float) else str(value)


def _say_all(scored: Mapping[str, StructureScores]) -> None:
    import pandas as pd

    table = pd.DataFrame({name: found.values for name, found in scored.items()}).T
    shown = table[[name for name in SHOWN if name in table]].rename_axis("id").reset_index()
    say(shown.to_string(index=False, float_format=three_digits, na_rep="-"))
    noted = sum(bool(found.notes) for found in scored.values())
    if noted:
        say(
            f"{counted(noted, 'structure')} with residues or chains that were not compared (named "
            f"in the column notes of --output)"
        )


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    # the longest row first: a monomer has no scores of interfaces
    ordered = sorted(rows, key=len, reverse=True)
    columns = list(dict.fromkeys(key for row in ordered for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    """Return a value as a table holds it: an undefined number is an empty cell."""
    if not isinstance(value, float):
        return value
    return "" if value != value else f"{value:.4f}"
