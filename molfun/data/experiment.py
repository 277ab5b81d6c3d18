"""Experiment behind a structure file: method, resolution and date of release."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import gemmi

from molfun.data.confidence import b_factors_of_cif, b_factors_of_pdb
from molfun.data.unobserved import Unobserved, unobserved_of_cif, unobserved_of_pdb
from molfun.protein import BFactors

_FIRST_ATOM = re.compile(r"^(?:ATOM|HETATM|MODEL )", re.MULTILINE)
_RELEASE = re.compile(r"^REVDAT   1   (\d\d)-([A-Z]{3})-(\d\d)", re.MULTILINE)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_FIRST_YEAR = 1970
"""Years have two digits in PDB files, and the archive opened in 1971."""
_RESOLUTIONS = (
    "_refine.ls_d_res_high",
    "_em_3d_reconstruction.resolution",
    "_reflns.d_resolution_high",
)
"""Items of mmCIF in the order in which they count: of the model, of the map, of the data."""
_DATES = ("_pdbx_audit_revision_history.revision_date", "_database_PDB_rev.date")
"""Items with one date per revision, of which the earliest is the release; the second is of files
from before 2017."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Facts of the experiment, as far as a file states them.

    Parameters
    ----------
    method
        Method in the words of the PDB (``"X-RAY DIFFRACTION"``), several with ``"; "`` between
        them; empty where the file does not say.
    resolution
        Resolution in angstrom; None for methods without one, such as NMR, and where the file does
        not say.
    released
        Date of the first release as ``"2008-02-05"``; None where the file does not say. The date of
        deposition, up to years earlier, does not stand in for it.
    unobserved
        Residues of the sequences that have no coordinates.
    b_factors
        What the B-factors are, by the header.
    """

    method: str = ""
    resolution: float | None = None
    released: str | None = None
    unobserved: tuple[Unobserved, ...] = field(default=(), repr=False)
    b_factors: BFactors = field(default="unknown", repr=False)


def experiment_of_pdb(text: str) -> Experiment:
    r"""Return what the records before the atoms of a PDB file state.

    Parameters
    ----------
    text
        The file, with line feeds.

    Examples
    --------
    >>> experiment_of_pdb("EXPDTA    SOLUTION NMR\nREMARK   2 RESOLUTION. NOT APPLICABLE.\n")
    Experiment(method='SOLUTION NMR', resolution=None, released=None)
    """
    first = _FIRST_ATOM.search(text)
    header = text[: first.start()] if first else text
    if not header.strip():
        return Experiment()
    structure = gemmi.Structure()
    # a header that gemmi cannot read states nothing; the atoms may still be whole
    with contextlib.suppress(RuntimeError, ValueError, IndexError):
        structure = gemmi.read_pdb_string(header)
    released = _RELEASE.search(header)
    method = dict(structure.info).get("_exptl.method", "").strip()
    return Experiment(
        method=method,
        resolution=_positive(structure.resolution),
        released=_of_two_digits(*released.groups()) if released else None,
        unobserved=unobserved_of_pdb(header),
        b_factors=b_factors_of_pdb(header, method),
    )


def experiment_of_cif(block: Any) -> Experiment:
    """Return what a block of an mmCIF file (`gemmi.cif.Block`) states.

    Examples
    --------
    >>> import gemmi
    >>> text = "data_x _exptl.method 'X-RAY DIFFRACTION' _refine.ls_d_res_high 1.9"
    >>> experiment_of_cif(gemmi.cif.read_string(text)[0]).resolution
    1.9
    """
    found = (_positive(gemmi.cif.as_number(v)) for tag in _RESOLUTIONS for v in _values(block, tag))
    dates = (_iso(value) for tag in _DATES for value in _values(block, tag))
    methods = dict.fromkeys(v.upper() for v in _values(block, "_exptl.method"))
    return Experiment(
        method="; ".join(methods),
        resolution=next((value for value in found if value is not None), None),
        released=min((value for value in dates if value is not None), default=None),
        unobserved=unobserved_of_cif(block),
        b_factors=b_factors_of_cif(block, "; ".join(methods)),
    )


def _values(block: Any, tag: str) -> list[str]:
    values = map(gemmi.cif.as_string, block.find_values(tag))
    return [value.strip() for value in values if value.strip() not in ("", "?", ".")]


def _positive(number: float) -> float | None:
    """Return a resolution; 0, which some files have where there is none, is none."""
    return float(number) if math.isfinite(number) and number > 0 else None


def _of_two_digits(day: str, month: str, year: str) -> str | None:
    if month not in _MONTHS:
        return None
    full = _FIRST_YEAR // 100 * 100 + int(year)
    full += 100 * (full < _FIRST_YEAR)
    return _iso(f"{full}-{_MONTHS.index(month) + 1:02}-{day}")


def _iso(text: str) -> str | None:
    """Return a date as ISO 8601 has it; None for a text that is none."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        return None
