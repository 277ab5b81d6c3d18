"""Write a report: one HTML file that holds everything it shows and loads nothing.

A policy in the page forbids every connection and every script but those written here, by their
digests, so that nothing in a user's data can run or phone home.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molfun import __version__
from molfun._io import write_text
from molfun._lazy import require
from molfun.report.blocks import Section, Structures
from molfun.report.finished import FinishedRun
from molfun.report.sections import SECTIONS, pretraining
from molfun.runs.folder import REPORT
from molfun.text import first_line

logger = logging.getLogger(__name__)

BADGES = {
    "better": "better than the best baseline",
    "not better": "not better than the best baseline",
    "worse": "worse than the best baseline",
    "too few": "too few samples to conclude anything",
    "no baseline": "compared with no baseline",
}


def write_report(run: str | Path | FinishedRun) -> Path:
    """Write ``report.html`` into the folder of a run, and return its path.

    Parameters
    ----------
    run
        Folder of a run.

    Raises
    ------
    RunError
        If the folder is not that of a run, or cannot be written.
    MissingDependencyError
        Without jinja2 or matplotlib.
    """
    found = run if isinstance(run, FinishedRun) else FinishedRun(run)
    sections = [made for section in SECTIONS if (made := _made(section, found)) is not None]
    path = found.path / REPORT
    write_text(path, page(title_of(found), sections, kicker="Molfun run", verdicts=verdicts(found)))
    return path


def title_of(run: FinishedRun) -> str:
    """Return the heading of a report: name of the run, and what it predicts."""
    if run.objective:
        return f"{run.name}: pre-training"
    targets = ", ".join(head.target for head in run.heads)
    return f"{run.name}: {targets}" if targets else run.name


def verdicts(run: FinishedRun) -> list[dict[str, str]]:
    """Return sentence, class and badge of the verdict of each head; empty for an older run."""
    if run.objective:
        words = pretraining.sentence(run)
        badge = "validation also chose the epoch" if "validation" in words else ""
        return [{"head": "", "sentence": words, "outcome": "", "badge": badge}] if words else []
    return [
        {
            "head": head,
            "sentence": str(found.get("verdict", "")),
            "outcome": str(found.get("outcome", "")).replace(" ", "-"),
            "badge": BADGES.get(str(found.get("outcome")), ""),
        }
        for head, found in run.evaluation.items()
    ]


def _made(section: Any, run: FinishedRun) -> Section | None:
    """Make a section; one that fails is left out with a warning, the others still tell."""
    try:
        made: Section | None = section(run)
    except Exception as error:  # files of older runs lack anything; the other sections are shown
        name = section.__module__.rpartition(".")[2]
        logger.warning("The report has no section %r: %s.", name, first_line(error))
        logger.debug("Section %r failed", name, exc_info=True)
        return None
    return made


def page(
    title: str,
    sections: Sequence[Section],
    *,
    kicker: str = "",
    verdicts: Sequence[dict[str, str]] = (),
) -> str:
    """Return the HTML of a page of sections.

    Parameters
    ----------
    title
        Heading.
    sections
        Content in order.
    kicker
        Small line above the heading.
    verdicts
        ``head``, ``sentence``, ``outcome`` and ``badge`` of each, above all else.
    """
    shown = any(isinstance(block, Structures) for s in sections for block in s.blocks)
    scripts = [_asset("3Dmol-min.js"), _asset("view.js")] if shown else []
    return str(
        _template().render(
            title=title,
            sections=sections,
            kicker=kicker,
            verdicts=verdicts,
            scripts=scripts,
            policy=_policy(scripts),
            style=_safe(_asset("report.css")),
            version=__version__,
        )
    )


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: no connections, and only these scripts."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    # the drawings of matplotlib and the viewer have inline styles, which load nothing
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )


@functools.cache
def _template() -> Any:
    jinja2 = require("jinja2", "pip install jinja2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    # drawings and scripts are made here, matplotlib escapes texts in them
    environment.filters |= {"drawing": _safe, "code": _safe}
    return environment.from_string(_asset("report.html.j2"))


def _safe(text: str) -> Any:
    return require("markupsafe", "pip install jinja2").Markup(text)


@functools.cache
def _asset(name: str) -> str:
    place = importlib.resources.files("molfun.report") / "assets" / name
    return place.read_text(encoding="utf-8")
