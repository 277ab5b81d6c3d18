"""Variants of one protein: simple models under a random split beside one by position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from molfun.evaluation.split_claims import COMPARED
from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import FinishedRun
from molfun.report.numbers import DASH, PART_NAMES, estimate
from molfun.tasks.titles import title_of

ORDER = ("random", "position")
CLAIMS = {
    "random": "values between measured variants are filled in: a test variant has relatives in "
    "training that differ at the same position",
    "position": "sites that were never varied are predicted: no test position varies in training",
    "contiguous": "regions that were never varied are predicted: the test part is a stretch of "
    "the sequence",
    "modulo": "sites that were never varied are predicted, with neighbours that were",
    "n_mutations": "mutations are combined: test variants have more of them than training variants",
    "low_to_high": "better variants are found than any in training",
}
"""Claim that a good score under each split allows."""


def section(run: FinishedRun) -> Section | None:
    """Return the splits side by side, and the claim that each allows."""
    blocks: list[Any] = []
    for head, found in run.evaluation.items():
        # a file has them in the order of their letters
        splits = {n: found["splits"][n] for n in ORDER if n in found.get("splits", {})}
        if splits:
            blocks += _of_head(head, found, splits, str(run.config.get("split")))
    if not blocks:
        return None
    return Section("What the split allows to claim", [*blocks, *_words(run)])


def _of_head(
    head: str, found: Mapping[str, Any], splits: Mapping[str, Any], own: str
) -> Iterator[Any]:
    """Yield a row per simple model, and that of this model under its own split."""
    sizes = (
        f"{name} split ({split['n_test']:,} of {split['n_train'] + split['n_test']:,} test)"
        for name, split in splits.items()
    )
    rows = [_of_model(found, splits, own), *_of_baselines(splits)]
    words = f"{title_of(found['metric'])} of the same models under both splits of the whole table"
    yield Table(["", *sizes], rows, f"{head}: {words}" if head else words)
    for name, split in splits.items():
        if split.get("problem"):
            yield Text(f"There is no {name} split: {split['problem']}.", "note")


def _of_baselines(splits: Mapping[str, Any]) -> Iterator[list[str]]:
    scores = [split.get("scores", {}) for split in splits.values()]
    for name in COMPARED:
        titles = [one[name]["title"] for one in scores if name in one]
        if titles:
            yield [titles[0], *(_cell(one.get(name)) for one in scores)]


def _of_model(found: Mapping[str, Any], splits: Mapping[str, Any], own: str) -> list[str]:
    part = found.get("part", "")
    value = found.get("parts", {}).get(part, {}).get("metrics", {}).get(found["metric"])
    name = f"this model, {PART_NAMES.get(part, part)} part of this run"
    return [name, *(estimate(value) if split == own else DASH for split in splits)]


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return DASH
    value = score["value"]
    return "all equal" if value.get("value") is None else estimate(value)


def _words(run: FinishedRun) -> Iterator[Text]:
    for name in ORDER:
        yield Text(f"A good score under a {name} split says that {CLAIMS[name]}.")
    own = run.config.get("split")
    if own in CLAIMS and own not in ORDER:
        yield Text(f"This run has the split {own}: its score says that {CLAIMS[own]}.")
    elif own in CLAIMS:
        other = "position" if own == "random" else "random"
        yield Text(
            f"This run has the {own} split, so its score allows that claim alone. Repeat it with "
            f"--split {other} for the other one."
        )
    yield Text(
        "Simple models learn from the training part of each split and predict its test part, with "
        "95 % intervals. Where all predictions are equal there is no order of the variants: ridge "
        "on one-hot knows nothing of a position that did not vary in training.",
        "note",
    )
