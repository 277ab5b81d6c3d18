"""Settings of the run, and the command that repeats it."""

from __future__ import annotations

import shlex

from molfun.config import dump_yaml
from molfun.report.blocks import Section, Text
from molfun.report.finished import FinishedRun

PLACES = ("started_in", "output")


def section(run: FinishedRun) -> Section | None:
    """Return ``config.yaml``, and how to start from it."""
    if not run.config:
        return None
    verb = "pretrain" if "objective" in run.config or not run.meta else "fine-tune"
    if run.folds:
        verb = "cv"
    # the settings name a file relative to the folder that the run was started in
    output = str(run.config.get("output") or run.path)
    command = shlex.join(
        ["molfun", verb, "--config", f"{output}/config.yaml", "--output", f"{output}-again"]
    )
    changed = {k: v for k, v in run.config.items() if v not in (None, {}, [])}
    return Section(
        "Settings",
        [
            Text("To repeat the run, from the folder it was started in:"),
            Text(command, "code"),
            Text("All settings (config.yaml), without those that are empty:"),
            Text(dump_yaml(changed).strip(), "code"),
        ],
    )
