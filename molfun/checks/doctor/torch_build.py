"""The installed torch."""

from __future__ import annotations

from collections.abc import Iterator

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.text import first_line


def check(context: Context) -> Iterator[Finding]:  # noqa: ARG001
    """Import torch, and say for what it was built."""
    try:
        import torch
    except Exception as error:  # a missing library raises OSError, a broken install anything
        yield Finding(
            status="FAILED",
            topic="torch",
            text=f"cannot be imported ({type(error).__name__}: {first_line(error)})",
            remedy="pip install torch",
        )
        return
    built_for = torch.version.cuda or torch.version.hip
    facts = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    yield Finding(
        status="OK",
        topic="torch",
        text=f"{torch.__version__}, built for {f'CUDA {built_for}' if built_for else 'CPUs'}",
        facts=facts,
    )
