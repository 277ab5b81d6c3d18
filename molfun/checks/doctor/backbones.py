"""Which backbones can be imported, and what installs the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.errors import MissingDependencyError
from molfun.registry import BACKBONES
from molfun.text import first_line


def check(context: Context) -> Iterator[Finding]:  # noqa: ARG001
    """Import every registered backbone."""
    for name in BACKBONES:
        yield _imported(name)


def _imported(name: str) -> Finding:
    topic = f"backbone {name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages that it imports
            cls = BACKBONES[name]
    except MissingDependencyError as error:
        return Finding(
            status="WARNING",
            topic=topic,
            text="needs a package that is not installed",
            remedy=error.install or first_line(error),
        )
    facts = {"class": f"{cls.__module__}.{cls.__qualname__}", "inputs": list(cls.inputs)}
    return Finding(status="OK", topic=topic, text=f"{cls.display_name}; takes "
                   f"{' or '.join(cls.inputs)}", facts=facts)  # fmt: skip
