"""Origin: versions, git commit, and digests of the files that the run read."""

from __future__ import annotations

from typing import Any

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import FinishedRun
from molfun.text import megabytes


def section(run: FinishedRun) -> Section | None:
    """Return where the numbers come from."""
    found = run.provenance
    if not found:
        version = run.meta.get("molfun_version")
        words = f"Written by Molfun {version}; " if version else ""
        text = f"{words}versions, commit and files were not recorded."
        return Section("Origin", [Text(text, "note")])
    rows = [[name, version] for name, version in found.get("versions", {}).items()]
    machine = found.get("machine", {})
    rows += [["Python", machine["python"]]] if "python" in machine else []
    rows += [["started", found["started"]]] if "started" in found else []
    git = found.get("git")
    if git:
        rows.append(["git commit", f"{git['commit']}{' (with changes)' if git['dirty'] else ''}"])
    blocks: list[Any] = [Table([], rows, numeric=False)]
    files = [_file(name, about) for name, about in found.get("files", {}).items()]
    if files:
        caption = "Files that the run read, as they were then."
        blocks.append(Table(["file", "size", "sha256"], files, caption, numeric=False))
    return Section("Origin", blocks)


def _file(name: str, about: dict[str, Any]) -> list[str]:
    if "files" in about:
        return [name, f"{about['files']:,} files", about.get("sha256", "")]
    return [name, megabytes(about["size"]), about.get("sha256", "")]
