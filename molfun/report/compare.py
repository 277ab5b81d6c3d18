"""Compare runs on the samples that all of them predicted, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_text
from molfun.errors import ConfigError, DataError
from molfun.evaluation.bootstrap import Estimate, estimates
from molfun.report.blocks import Figure, Section, Table, Text
from molfun.report.figures import COLOURS, INK, MUTED, cut, plot
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.numbers import PART_NAMES, interval
from molfun.report.page import page
from molfun.report.paired import (
    Measure,
    Values,
    forces_measure,
    forces_of,
    measure_of,
    values_of,
)
from molfun.report.predicted import HeadOfRun, Predicted
from molfun.report.sections.baselines import draw_interval
from molfun.tasks.titles import title_of


@dataclass(frozen=True)
class Comparison:
    """Metrics of several runs on the samples that they share.

    Parameters
    ----------
    names
        Name of each run.
    head, part
        Head, and part of the data, that are compared.
    n
        Samples that all runs predicted.
    left_out
        Samples that only some of them predicted.
    main
        Metric of the differences.
    higher_is_better
        Direction of it.
    metrics
        Values by metric, one per run.
    better
        How much better each run is than the first one in the main metric; below 0 it is worse.
    """

    names: list[str]
    head: HeadOfRun
    part: str
    n: int
    left_out: int
    main: str
    higher_is_better: bool
    metrics: dict[str, list[Estimate]]
    better: list[Estimate]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows as texts, the first run first."""
        others = [name for name in self.metrics if name != self.main]
        header = ["run", title_of(self.main), f"better than {self.names[0]} by"]
        header += map(title_of, others)
        rows = []
        for i, name in enumerate(self.names):
            row = [name, interval(self.metrics[self.main][i])]
            row += [interval(self.better[i]) if i else ""]
            rows.append([*row, *(interval(self.metrics[other][i]) for other in others)])
        return header, rows


def compare_runs(runs: Sequence[str | Path]) -> list[Comparison]:
    """Compare runs on the samples of one part that all of them predicted, head by head.

    The same samples are drawn for all runs, so that the interval of a difference is that of pairs.

    Parameters
    ----------
    runs
        Folders of at least two runs.

    Returns
    -------
    list of Comparison
        One per head that all runs have, and one for the forces of each model of energies.

    Raises
    ------
    ConfigError
        If there are fewer than two runs, or they have no head in common.
    DataError
        If they share no sample, or have different labels for one.
    """
    if len(runs) < 2:
        raise ConfigError("compare needs at least two runs, and the same test samples in each.")
    opened = [FinishedRun(run) for run in runs]
    heads = _common_heads(opened)
    found = [_compared(opened, head) for head in heads]
    forces = [_forces(opened, head) for head in heads if head.task == "energy"]
    return [*found, *(one for one in forces if one is not None)]


def _common_heads(runs: Sequence[FinishedRun]) -> list[HeadOfRun]:
    heads = [head for head in runs[0].heads if all(_same(head, run) for run in runs)]
    if not heads:
        tasks = "; ".join(f"{run.name}: {_tasks(run)}" for run in runs)
        raise ConfigError(f"The runs have no task in common ({tasks}).")
    return heads


def _tasks(run: FinishedRun) -> str:
    return ", ".join(f"{head.task} of {head.target}" for head in run.heads) or "none"


def _same(head: HeadOfRun, run: FinishedRun) -> HeadOfRun | None:
    """Return the head of a run with the same task and classes; None if it has none."""
    wanted = (head.name, head.task, head.level, head.classes)
    return next((h for h in run.heads if (h.name, h.task, h.level, h.classes) == wanted), None)


def _compared(runs: Sequence[FinishedRun], head: HeadOfRun) -> Comparison:
    part, found = _predictions(runs, head)
    measure = measure_of(head, found[0].form)
    names = _names(runs)
    shared = _shared([one.ids for one in found])
    if not shared:
        raise DataError(
            f"The runs share no sample of the {PART_NAMES[part]} part: train them with the same "
            f"split (--seed, --split column or --test)."
        )
    samples = [values_of(one, shared) for one in found]
    _check_labels(samples, names, shared)
    every = set().union(*(one.ids for one in found))
    return _comparison(names, head, part, samples, measure, left_out=len(every) - len(shared))


def _shared(ids: Sequence[Sequence[str]]) -> list[str]:
    """Return the ids that all have, in the order of the first."""
    common = set(ids[0]).intersection(*ids[1:])
    return [name for name in ids[0] if name in common]


def _forces(runs: Sequence[FinishedRun], head: HeadOfRun) -> Comparison | None:
    """Compare the forces of models of energies; None where some run has none."""
    part, found = _predictions(runs, head)
    shared = _shared([one.ids for one in found])
    by_run = [forces_of(run, part, shared) for run in runs]
    known = _shared([list(one) for one in by_run])
    if not known:
        return None
    samples = [Values.joined([one[name] for name in known]) for one in by_run]
    names = _names(runs)
    _check_labels(samples, names, known)
    forces = replace(head, target=f"forces of {head.target}")
    left_out = len(shared) - len(known)
    return _comparison(names, forces, part, samples, forces_measure(), left_out=left_out)


def _comparison(
    names: list[str],
    head: HeadOfRun,
    part: str,
    samples: Sequence[Values],
    measure: Measure,
    *,
    left_out: int,
) -> Comparison:
    metrics, better = _estimates(measure, samples)
    n = len(samples[0].places)
    higher = measure.higher_is_better
    return Comparison(names, head, part, n, left_out, measure.main, higher, metrics, better)


def _predictions(runs: Sequence[FinishedRun], head: HeadOfRun) -> tuple[str, list[Predicted]]:
    """Return the first part that all runs predicted, test before validation."""
    for part in PARTS:
        found = [run.predicted(_same(head, run) or head, part) for run in runs]
        present = [one for one in found if one is not None]
        if len(present) == len(runs):
            return part, present
    raise DataError("The runs have no part in common that all of them predicted.")


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Return names of the folders, or their paths where names repeat."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _check_labels(samples: Sequence[Values], names: Sequence[str], ids: Sequence[str]) -> None:
    first = samples[0]
    for name, own in zip(names[1:], samples[1:], strict=True):
        pairs = zip(first.places, own.places, strict=True)
        wrong = [
            i
            for i, (a, b) in enumerate(pairs)
            if not np.array_equal(first.labels[a], own.labels[b], equal_nan=True)
        ]
        if wrong:
            raise DataError(
                f"{names[0]} and {name} have different labels for {len(wrong):,} of their common "
                f"samples, first for {ids[wrong[0]]!r}: they were trained on different data."
            )


def _estimates(
    measure: Measure, samples: Sequence[Values]
) -> tuple[dict[str, list[Estimate]], list[Estimate]]:
    """Return metrics of each run, and differences to the first, from the same draws."""
    n, main, score = len(samples[0].places), measure.main, measure.score
    names = list(score(*samples[0].drawn(np.arange(n))))
    sign = 1 if measure.higher_is_better else -1

    def values(drawn: np.ndarray) -> np.ndarray:
        scores = [score(*own.drawn(drawn)) for own in samples]
        differences = [sign * (one[main] - scores[0][main]) + 0.0 for one in scores]  # no -0
        return np.array([*(one[name] for one in scores for name in names), *differences])

    found = estimates(values, n, draws=measure.draws, corrected=False)
    by_run = [found[i * len(names) : (i + 1) * len(names)] for i in range(len(samples))]
    metrics = {name: [own[place] for own in by_run] for place, name in enumerate(names)}
    return metrics, found[len(names) * len(samples) :]


def write_comparison(
    runs: Sequence[str | Path], found: Sequence[Comparison], path: str | Path
) -> Path:
    """Write a comparison as one HTML file, and return its path.

    Parameters
    ----------
    runs
        Folders of the runs.
    found
        Result of `compare_runs`.
    path
        File to write.
    """
    opened = [FinishedRun(run) for run in runs]
    sections = [_section(one) for one in found]
    differing = _settings(opened, _names(opened))
    sections += [differing] if differing is not None else []
    verdicts = [
        {
            "head": name,
            "sentence": str(verdict.get("verdict", "")),
            "outcome": str(verdict.get("outcome", "")).replace(" ", "-"),
            "badge": "",
        }
        for name, run in zip(_names(opened), opened, strict=True)
        for verdict in run.evaluation.values()
    ]
    title = " and ".join(_names(opened)[:3]) + (" ..." if len(opened) > 3 else "")
    write_text(path, page(title, sections, kicker="Molfun comparison", verdicts=verdicts))
    return Path(path)


def _section(found: Comparison) -> Section:
    header, rows = found.table()
    words = f"{found.n:,} common samples of the {PART_NAMES[found.part]} part"
    if found.left_out:
        words += f"; {found.left_out:,} that only some runs predicted are left out"
    note = (
        "Brackets are 95 % bootstrap intervals. Differences are paired: the same samples are drawn "
        "for all runs. Where an interval holds 0, the data does not tell the runs apart."
    )
    title = f"Results: {found.head.target}"
    blocks: list[Any] = [Table(header[:3], [row[:3] for row in rows], f"{words}."), _figure(found)]
    if header[3:]:  # apart from the others, as all intervals in one table are wider than a page
        names = [header[0], *header[3:]]
        blocks.append(Table(names, [[row[0], *row[3:]] for row in rows], "Other metrics."))
    return Section(title, [*blocks, Text(note, "note")])


def _figure(found: Comparison) -> Figure:
    lines: list[tuple[str, Callable[[int], Any]]] = [
        (title_of(found.main), lambda i: found.metrics[found.main][i]),
        (f"better than {cut(found.names[0], 16)} by", lambda i: found.better[i]),
    ]
    with plot(8.8, 1.2 + 0.36 * len(found.names), columns=2) as drawn:
        for axes, (label, value) in zip(drawn.axes, lines, strict=True):
            for i in range(len(found.names)):
                draw_interval(axes, i, vars(value(i)), COLOURS[0] if i else MUTED)
            axes.set_ylim(len(found.names) - 0.5, -0.5)
            axes.set_xlabel(label)
            names = [cut(name, 24) for name in found.names]
            axes.set_yticks(range(len(names)), names, color=INK)
        drawn.axes[1].axvline(0, color=MUTED, linewidth=1, linestyle="--")
        drawn.axes[1].tick_params(labelleft=False)
    better = "higher" if found.higher_is_better else "lower"
    caption = f"{title_of(found.main)} of each run ({better} is better), and paired differences."
    return Figure(drawn.svg, caption, wide=True)


def _settings(runs: Sequence[FinishedRun], names: Sequence[str]) -> Section | None:
    """Return the settings in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    own = {"output", "started_in"}
    rows = [
        [key, *(str(run.config.get(key, "")) for run in runs)]
        for key in keys
        if key not in own and len({str(run.config.get(key)) for run in runs}) > 1
    ]
    if not rows:
        return None
    return Section("Settings that differ", [Table(["", *names], rows, numeric=False)])
