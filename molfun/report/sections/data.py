"""Data: how much, how it is split, how labels and lengths lie, and what was warned of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from molfun.report.blocks import Figure, Section, Table, Text
from molfun.report.figures import COLOURS, bars, cut, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import PART_NAMES, number

GUARANTEES = {
    "random": "Random: equal inputs stay together; similar ones may be on both sides.",
    "temporal": "By time: the latest samples are in the test part.",
    "identity": "By identity: similar sequences stay together, so that the test part has no close "
    "relative in training.",
    "group": "By group: no group is in two parts.",
    "position": "By mutated position, at random: no position of the test part varies in training.",
    "contiguous": "By mutated position: the test part is a stretch that does not vary in training.",
    "modulo": "By mutated position: every n-th one is in the test part alone.",
    "n_mutations": "By number of mutations: the test part has more than the training part.",
    "low_to_high": "By label: the test part has higher ones than the training part.",
    "column": "As a column of the table says; nothing was checked about what the parts share.",
}
"""Guarantee of each split, by the setting ``split``."""
MOST_CLASSES = 20
"""Classes that have room as bars."""


def section(run: FinishedRun) -> Section | None:
    """Return counts, histograms, the split and the warnings of a run."""
    found = run.provenance.get("data", {})
    blocks = [*_counts(run, found), *_split(run), *_shared(found)]
    blocks += [*_labels(found.get("labels", {}), run), *_lengths(found.get("lengths", {}))]
    blocks += _warnings(run)
    return Section("Data", blocks) if blocks else None


def _counts(run: FinishedRun, found: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the table of parts."""
    counts = in_order(found.get("n") or run.splits)
    if not counts:
        return
    lengths = found.get("lengths", {}).get("numbers", {})
    header = ["part", "samples"]
    if "repeated" in found:
        header.append("repeated inputs")
    if found:
        header += ["shortest", "median", "longest"]
    rows = []
    for part, n in counts.items():
        row = [PART_NAMES.get(part, part), f"{n:,}"]
        if found:
            own = lengths.get(part, {})
            row += [f"{found['repeated'].get(part, 0):,}"] if "repeated" in found else []
            row += [number(own.get(name)) for name in ("min", "median", "max")]
        rows.append(row)
    yield Table(header, rows, caption=_files(run))


def in_order(by_part: Mapping[str, Any]) -> dict[str, Any]:
    """Put parts into the order of people; JSON keeps them in that of letters.

    Examples
    --------
    >>> list(in_order({"test": 1, "train": 8, "val": 1}))
    ['train', 'val', 'test']
    """
    names = [*(n for n in PART_NAMES if n in by_part), *(n for n in by_part if n not in PART_NAMES)]
    return {name: by_part[name] for name in names}


def _files(run: FinishedRun) -> str:
    names: list[str] = []
    for given in (run.config.get(name) for name in ("sequences", "data", "val", "test")):
        names += [given] if isinstance(given, str) else given or []
    return f"Read from {', '.join(names)}." if names else ""


def _split(run: FinishedRun) -> Iterator[Text]:
    split = run.config.get("split")
    files = [f"the {PART_NAMES[part]} part" for part in ("val", "test") if run.config.get(part)]
    if run.config.get("demo"):
        yield Text("Synthetic samples of the demo.")
    elif len(files) == 2:
        yield Text(f"Split. {' and '.join(files).capitalize()} are files of their own.")
    elif split in GUARANTEES:
        within = f" Within the data alone: {files[0]} is a file of its own." if files else ""
        yield Text(f"Split. {GUARANTEES[split]}{within}")


def _shared(found: Mapping[str, Any]) -> Iterator[Text]:
    for pair, n in found.get("shared", {}).items():
        if n:
            one, other = (PART_NAMES.get(name, name) for name in pair.split(", "))
            noun = "input is" if n == 1 else "inputs are"
            yield Text(f"{n:,} {noun} in both the {one} and the {other} part.", "warning")


def _labels(by_head: Mapping[str, Any], run: FinishedRun) -> Iterator[Any]:
    """Yield a histogram of the labels of each head."""
    names = {head.name: head.target for head in run.heads}
    for head, found in by_head.items():
        name = names.get(head) or head or "label"
        if found["kind"] == "class":
            yield from _classes(found["counts"], name)
        elif any(map(sum, found["counts"].values())):
            yield _numbers(found, name, f"Labels ({name}), share of each part.")
        yield from _missing(found.get("missing", {}), name)


def _missing(by_part: Mapping[str, int], name: str) -> Iterator[Text]:
    texts = [f"{n:,} in the {PART_NAMES.get(p, p)} part" for p, n in by_part.items() if n]
    if texts:
        yield Text(f"Without a label ({name}): {', '.join(texts)}.", "note")


def _classes(counts: Mapping[str, Mapping[str, int]], name: str) -> Iterator[Any]:
    counts = in_order(counts)
    classes = list(dict.fromkeys(c for by_class in counts.values() for c in by_class))
    if len(classes) > MOST_CLASSES:
        rows = [[c, *(f"{by.get(c, 0):,}" for by in counts.values())] for c in classes[:200]]
        yield Table(["class", *(PART_NAMES.get(p, p) for p in counts)], rows, f"Labels ({name}).")
    else:
        yield _bars(counts, classes, name)


def _bars(counts: Mapping[str, Mapping[str, int]], classes: list[str], name: str) -> Figure:
    width = 0.8 / max(1, len(counts))
    with plot() as drawn:
        axes = drawn.axes[0]
        for i, (part, by_class) in enumerate(counts.items()):
            total = sum(by_class.values()) or 1
            places = [j + (i - (len(counts) - 1) / 2) * width for j in range(len(classes))]
            shares = [by_class.get(c, 0) / total for c in classes]
            axes.bar(places, shares, width, color=COLOURS[i], label=PART_NAMES.get(part, part))
        axes.set_xticks(range(len(classes)), [cut(c, 60 // len(classes) + 3) for c in classes])
        axes.set_ylabel("share of the part")
        axes.set_xlabel(cut(name))
        # bars leave no room inside
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return Figure(drawn.svg, f"Labels ({name}), share of each class.")


def _numbers(found: Mapping[str, Any], name: str, caption: str) -> Figure:
    with plot() as drawn:
        axes = drawn.axes[0]
        for i, (part, counts) in enumerate(in_order(found["counts"]).items()):
            bars(axes, found["edges"], counts, COLOURS[i], PART_NAMES.get(part, part))
        axes.set_xlabel(cut(name, 40))
        axes.set_ylabel("share of the part")
        axes.legend()
    return Figure(drawn.svg, caption)


def _lengths(found: Mapping[str, Any]) -> Iterator[Any]:
    numbers = found.get("numbers", {}).values()
    if not numbers:
        return
    low, high = min(n["min"] for n in numbers), max(n["max"] for n in numbers)
    if low == high:
        yield Text(f"Every sample has length {number(low)}.", "note")
    else:
        yield _numbers(found, "length", "Lengths that the model sees, share of each part.")


def _warnings(run: FinishedRun) -> Iterator[Text]:
    for record in run.log:
        if record.level in ("WARNING", "ERROR"):
            yield Text(record.text, "warning")
