"""Versions of the packages that Molfun needs, against the ranges it declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ALSO = ("openfold",)
"""Packages that no extra can name: ``molfun install`` installs them."""


def check(context: Context) -> Iterator[Finding]:  # noqa: ARG001
    """Compare installed versions with the ranges that Molfun declares."""
    # packaging comes with lightning-fabric, so it is not imported where the environment is broken
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in metadata.requires("molfun") or []]
    except metadata.PackageNotFoundError:
        text = "Molfun runs from a folder and is not installed, so no ranges are known"
        yield Finding(status="WARNING", topic="packages", text=text, remedy="pip install -e .")
        return
    needed: dict[str, Requirement] = {}
    optional = {name: Requirement(name) for name in ALSO}
    for one in declared:
        extra = one.marker is not None and "extra" in str(one.marker)
        (optional if extra else needed).setdefault(one.name, one)
    yield _compared(needed, "packages", are_needed=True)
    yield _compared(optional, "optional packages", are_needed=False)


def _compared(declared: Mapping[str, Requirement], topic: str, *, are_needed: bool) -> Finding:
    versions = {name: _version(name) for name in declared}
    present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    found = Finding(status="OK", topic=topic, text=present or "none", facts=versions)
    wrong = {
        f"{name}{one.specifier}": versions[name]
        for name, one in declared.items()
        if not _fits(one, versions[name], are_needed)
    }
    if not wrong:
        return found
    return replace(
        found,
        status="FAILED" if are_needed else "WARNING",
        text=f"{len(wrong)} outside of the range that Molfun needs; there are {found.text}",
        examples=[f"{wanted}: found {version}" for wanted, version in wrong.items()],
        remedy=f"pip install {' '.join(map(repr, wrong))}",
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(one: Requirement, version: str | None, is_needed: bool) -> bool:
    if version is None:
        return not is_needed
    return one.specifier.contains(version, prereleases=True)
