"""The report of a study: values of the trials, what mattered, slices, and the best settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molfun._io import write_text
from molfun._paths import as_path
from molfun.config import dump_yaml
from molfun.report.blocks import Figure, Section, Table, Text
from molfun.report.figures import COLOURS, MUTED, cut, plot, points
from molfun.report.numbers import DASH, duration, number
from molfun.report.page import page
from molfun.runs.folder import REPORT
from molfun.tasks.titles import title_of
from molfun.text import counted
from molfun.tuning.results import FEWEST, STUDY, FinishedTrial, StudyResults
from molfun.tuning.space import Choices, Node, label_of

MOST_ROWS = 100
"""Rows of the table of trials; all are in ``trials.csv``."""
CAUTION = (
    "All trials were compared on validation rows; no trial saw a test row. The value of the best "
    "trial chose it among the others, so that it is too good for an estimate: measure the best "
    "settings on test rows."
)


def is_study(path: str | Path) -> bool:
    """Return whether a folder holds a study."""
    return (as_path(path) / STUDY).is_file()


def write_study_report(path: str | Path) -> Path:
    """Write ``report.html`` into the folder of a study, and return its path.

    Parameters
    ----------
    path
        Folder of a study.

    Raises
    ------
    RunError
        If it holds none, or no trial of it is complete.
    MissingDependencyError
        Without optuna, jinja2 or matplotlib.
    """
    study = StudyResults(path)
    best = study.best
    sections = [_outcome(study, best), _course(study, best), _importance(study)]
    sections += [_slices(study), _table(study)]
    title = f"{study.path.resolve().name}: {counted(len(study.trials), 'trial')}"
    text = page(title, [s for s in sections if s.blocks], kicker="Molfun study")
    write_text(study.path / REPORT, text)
    return study.path / REPORT


def _outcome(study: StudyResults, best: FinishedTrial) -> Section:
    trials = study.trials
    states = [one.state for one in trials]
    counts = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
    taken = sum(one.seconds for one in trials if math.isfinite(one.seconds))
    better = "higher" if study.higher_is_better else "lower"
    folds = study.about.get("folds")
    judged = f"mean over {folds} folds" if folds else "one validation part"
    rows = [
        ["best value", f"{number(best.value)} (trial {best.number})"],
        ["value", f"{_name(study)}, {judged}; {better} is better"],
        ["trials", ", ".join(counts)],
        ["time of all trials", duration(taken)],
        ["draws", f"{study.about['sampler']}, seed {study.about['seed']}"],
        ["pruning", str(study.about["pruning"])],
    ]
    return Section(
        "Best settings",
        [
            Table([], rows, numeric=False),
            Text(dump_yaml(dict(best.settings)).strip(), "code"),
            Text(CAUTION if "base" in study.about else CAUTION.partition("; ")[0] + ".", "note"),
        ],
    )


def _name(study: StudyResults) -> str:
    name = study.monitor.removeprefix("val/")
    return f"validation {title_of(name)}" if study.monitor.startswith("val/") else study.monitor


def _course(study: StudyResults, best: FinishedTrial) -> Section:
    """Draw the value of each trial and the best so far, and the epochs of all trials."""
    with plot(9.6, 3.4, columns=2) as drawn:
        left, right = drawn.axes
        _values(left, study)
        _epochs(right, study, best)
    caption = (
        "Left: the value of each trial and the best so far. Right: intermediate values of all "
        f"trials, of the best (trial {best.number}) in colour."
    )
    return Section("Course", [Figure(drawn.svg, caption, wide=True)])


def _values(axes: Any, study: StudyResults) -> None:
    for state, colour in (("complete", COLOURS[0]), ("pruned", MUTED)):
        shown = [one for one in study.trials if one.state == state]
        points(axes, [t.number for t in shown], [t.value for t in shown], colour, label=state)
    done = {one.number: one.value for one in study.trials if one.state == "complete"}
    pick = max if study.higher_is_better else min
    so_far = list(itertools.accumulate(done.values(), pick))
    axes.step(list(done), so_far, where="post", color=COLOURS[1], label="best so far")
    axes.set(xlabel="Trial", ylabel=_name(study))
    axes.legend()


def _epochs(axes: Any, study: StudyResults, best: FinishedTrial) -> None:
    for one in study.trials:
        steps = sorted(one.reported)
        is_best = one.number == best.number
        axes.plot(
            steps, [one.reported[s] for s in steps], lw=2 if is_best else 0.8,
            color=COLOURS[1] if is_best else MUTED, alpha=1 if is_best else 0.5,
        )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="Fold" if study.about.get("folds") else "Epoch", ylabel=_name(study))


def _importance(study: StudyResults) -> Section:
    found = study.importances()
    if not found:
        words = f"Importances need at least {FEWEST} complete trials with different values."
        return Section("What mattered", [Text(words, "note")])
    blocks: list[Any] = []
    for group, shares in found.items():
        ordered = sorted(shares.items(), key=lambda item: item[1])
        with plot(4.8, 1.0 + 0.34 * len(ordered)) as drawn:
            axes = drawn.axes[0]
            names = [cut(key.rpartition(": ")[2], 28) for key, _ in ordered]
            axes.barh(range(len(ordered)), [share for _, share in ordered], color=COLOURS[0])
            axes.set_yticks(range(len(ordered)), names)
            axes.set(xlabel="Share of the variance", xlim=(0, 1))
        of = f"the trials with {group}" if group else "all complete trials"
        blocks.append(Figure(drawn.svg, f"What each setting explains among {of} (fANOVA)."))
    note = "Shares of few trials are rough, and hold for these ranges alone."
    return Section("What mattered", [*blocks, Text(note, "note")])


def _slices(study: StudyResults) -> Section:
    trials = [one for one in study.trials if math.isfinite(one.value)]
    blocks = []
    for key, node in study.space.draws().items():
        shown = [one for one in trials if key in one.keys]
        if shown:
            blocks.append(_slice(study, key, node, shown))
    return Section("Slices", blocks)


def _slice(study: StudyResults, key: str, node: Node, shown: Sequence[FinishedTrial]) -> Figure:
    """Draw the values over one setting; pruned trials are grey, their best value counts."""
    with plot(4.8, 3.0) as drawn:
        axes = drawn.axes[0]
        labels = node.labels if isinstance(node, Choices) else []
        for state, colour in (("pruned", MUTED), ("complete", COLOURS[0])):
            own = [one for one in shown if one.state == state]
            x = [labels.index(t.keys[key]) if labels else t.keys[key] for t in own]
            points(axes, x, [one.value for one in own], colour)
        _scale(axes, node)
        axes.set(xlabel=cut(key, 48), ylabel=_name(study))
    return Figure(drawn.svg, f"Values over {key}; pruned trials are grey.")


def _scale(axes: Any, node: Node) -> None:
    """Name the choices, or stretch a range as it is drawn."""
    if isinstance(node, Choices):
        axes.set_xticks(range(len(node.labels)), [cut(str(one), 16) for one in node.labels])
        axes.set_xlim(-0.5, len(node.labels) - 0.5)
    elif node.log:
        axes.set_xscale("log")
        # formulas are off on this page, and powers of ten are formulas
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")


def _table(study: StudyResults) -> Section:
    sign = -1 if study.higher_is_better else 1
    trials = sorted(
        study.trials,
        key=lambda t: (t.state != "complete", math.isnan(t.value), sign * t.value, t.number),
    )
    names = study.space.names()
    rows = [
        [
            str(t.number), number(t.value), t.state,
            *(_cell(t.settings[name]) if name in t.settings else DASH for name in names),
            duration(t.seconds) if math.isfinite(t.seconds) else DASH,
        ]
        for t in trials[:MOST_ROWS]
    ]  # fmt: skip
    header = ["trial", _name(study), "state", *names, "time"]
    left = f" The first {MOST_ROWS}; all are in trials.csv." if len(trials) > MOST_ROWS else ""
    blocks: list[Any] = [Table(header, rows, f"Complete trials first, the best on top.{left}")]
    failed = [[str(t.number), t.error] for t in study.trials if t.state == "failed"]
    if failed:
        blocks.append(Table(["trial", "error"], failed, "Trials that failed.", numeric=False))
    return Section("Trials", blocks)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(label_of(value))
