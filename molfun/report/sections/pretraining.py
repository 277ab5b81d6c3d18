"""Results of pre-training, next to what a guess without a model reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import FinishedRun
from molfun.report.numbers import number
from molfun.tasks.titles import title_of

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
NOTES = {
    "masked_lm": "Perplexity is the number of residues that the model hesitates between: 1 is "
    "certainty, 20 no knowledge. Accuracy is the share of masked residues that it gets right.",
    "mae": "Errors are in standard deviations of each feature. R² is the share of the variance of "
    "hidden values that is explained: 0 is what filling in the mean of the feature gives.",
}
"""Meaning of the metrics, by objective."""


LOSSES = ("train_loss", "val_loss")


def section(run: FinishedRun) -> Section | None:
    """Return the metrics of the weights that are kept."""
    if not run.objective or not run.history:
        return None
    best = run.history.best
    known = _known(best)
    validated = any(name.startswith("val") for name in known)
    where = "validation samples" if validated else "training samples; nothing was validated"
    caption = f"Epoch {best['epoch']}, {where}."
    notes = [Text(NOTES[run.objective], "note")] if run.objective in NOTES else []
    return Section("Results", [replace(_table(run, known), caption=caption), *notes])


def _known(best: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are defined, and the losses below them."""
    names = dict.fromkeys([*(name for name in best if name.startswith("val/")), *LOSSES])
    return {name: best[name] for name in names if _is_known(best.get(name))}


def _table(run: FinishedRun, values: dict[str, float]) -> Table:
    guess = guessed(run)
    header = ["", "this model", *(["by frequency alone"] if guess else [])]
    rows = [[title_of(name), number(value)] for name, value in values.items()]
    if guess:
        rows = [[*r, number(guess.get(name))] for r, name in zip(rows, values, strict=True)]
    return Table(header, rows)


def sentence(run: FinishedRun) -> str:
    """Return what pre-training reached in one sentence; empty where nothing was validated."""
    if not run.history:
        return ""
    best, guess = run.history.best, guessed(run)
    n = run.provenance.get("data", {}).get("n", {}).get("val")
    where = f"{n:,} validation samples" if n else "the validation samples"
    if _is_known(best.get("val/perplexity")):
        words = f"Perplexity {number(best['val/perplexity'])} at masked residues of {where}"
        if "val/perplexity" not in guess:
            return f"{words}."
        return f"{words}; guessing by their frequencies: {number(guess['val/perplexity'])}."
    if run.objective == "mae" and _is_known(best.get("val/r2")):
        share = number(100 * best["val/r2"])
        return f"{share} % of the variance of hidden values is explained, on {where}."
    return ""


def guessed(run: FinishedRun) -> dict[str, float]:
    """Return perplexity and accuracy of guessing by the residue frequencies of the training set.

    Empty where residues were not predicted or not counted.
    """
    letters = run.provenance.get("data", {}).get("letters", {})
    train, val = ({a: by.get(a, 0) for a in AMINO_ACIDS} for by in _parts(letters))
    n_train, n_val = sum(train.values()), sum(val.values())
    if run.objective != "masked_lm" or not n_train or not n_val:
        return {}
    # one more of each, so that a residue that training lacks has a probability
    log_p = {a: math.log((train[a] + 1) / (n_train + len(AMINO_ACIDS))) for a in AMINO_ACIDS}
    commonest = max(train, key=lambda a: train[a])
    return {
        "val/perplexity": math.exp(-sum(val[a] * log_p[a] for a in AMINO_ACIDS) / n_val),
        "val/accuracy": val[commonest] / n_val,
    }


def _parts(letters: dict[str, dict[str, int]]) -> tuple[dict[str, int], dict[str, int]]:
    return letters.get("train", {}), letters.get("val", {})


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
