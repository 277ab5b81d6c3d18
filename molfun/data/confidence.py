"""Tell from a structure file whether its B-factors are pLDDT or come from an experiment."""

from __future__ import annotations

import re
from typing import Any

import gemmi

from molfun.protein import BFactors, Protein

_SIGN = r"ALPHAFOLD|ESMFOLD|PLDDT|\bAF-[A-Z0-9]{6,10}-F\d"
"""Programs that write pLDDT as B-factors, and how AlphaFold's database names its models."""
_IN_HEADER = re.compile(
    rf"^(?:HEADER|TITLE |COMPND|REMARK|DBREF|EXPDTA)[^\n]*?(?:{_SIGN})",
    re.IGNORECASE | re.MULTILINE,
)
_IN_NAME = re.compile(r"^AF-|alphafold|esmfold", re.IGNORECASE)
_NO_EXPERIMENT = re.compile(r"THEORETICAL|PREDICT|COMPUT|IN SILICO", re.IGNORECASE)
_METRICS = ("_ma_qa_metric.name", "_ma_qa_metric.type", "_ma_qa_metric.mode")
_CIF_TITLES = ("_entry.id", "_struct.title", "_database_2.database_id", "_software.name")


def b_factors_of_pdb(header: str, method: str) -> BFactors:
    r"""Return what the B-factors of a PDB file are, by the records before its atoms.

    A method of an experiment decides: experiments that were solved with a predicted model name it
    in their remarks. Else it is a prediction if title, remarks or references to databases name
    AlphaFold, ESMFold or pLDDT.

    Parameters
    ----------
    header
        These records, with line feeds.
    method
        What the file states of its method; empty where it does not.

    Examples
    --------
    >>> title = "TITLE     ESMFOLD V1 PREDICTION FOR INPUT\n"
    >>> b_factors_of_pdb(title, ""), b_factors_of_pdb(title, "SOLUTION NMR")
    ('plddt', 'measured')
    """
    if _is_experiment(method):
        return "measured"
    return "plddt" if _IN_HEADER.search(header) else "unknown"


def b_factors_of_cif(block: Any, method: str) -> BFactors:
    """Return what the B-factors of a block of mmCIF (`gemmi.cif.Block`) are.

    A method of an experiment decides, then the metrics that a ModelCIF file lists, then its titles.

    Examples
    --------
    >>> text = "data_x loop_ _ma_qa_metric.id _ma_qa_metric.mode _ma_qa_metric.type 1 local pLDDT"
    >>> b_factors_of_cif(gemmi.cif.read_string(text)[0], "")
    'plddt'
    """
    if _is_experiment(method):
        return "measured"
    columns = [column for tag in _METRICS if (column := _texts(block, tag))]
    if columns:
        return "plddt" if _lists_plddt(columns) else "other"
    titles = " ".join(text for tag in _CIF_TITLES for text in _texts(block, tag))
    return "plddt" if re.search(_SIGN, titles, re.IGNORECASE) else "unknown"


def settled(stated: BFactors, protein: Protein) -> BFactors:
    """Return what the B-factors of a protein are, by what its file states, its name and numbers.

    The name counts where the file states nothing (``AF-P69905-F1-model_v4``). Numbers alone make no
    prediction, but those that no pLDDT has, such as zeros after a simulation, are none.
    """
    found = "plddt" if stated == "unknown" and _IN_NAME.search(protein.name) else stated
    if found != "plddt":
        return found
    values = protein.b_factors[protein.atom_mask > 0]
    return "plddt" if values.size and values.min() >= 0 and 0 < values.max() <= 100 else "other"


def _lists_plddt(columns: list[list[str]]) -> bool:
    # one number for the whole model stands in no column of atoms
    rows = [" ".join(row) for row in zip(*columns, strict=False) if "global" not in row]
    return "plddt" in " ".join(rows).lower()


def _texts(block: Any, tag: str) -> list[str]:
    return list(map(gemmi.cif.as_string, block.find_values(tag)))


def _is_experiment(method: str) -> bool:
    return bool(method.strip()) and not _NO_EXPERIMENT.search(method)
