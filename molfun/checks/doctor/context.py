"""Settings and facts that the checks of the installation share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Context:
    """Settings of an examination.

    Parameters
    ----------
    output
        Folder that runs would be written to.
    weights
        Folders in which weight files are looked for, in addition to the usual ones.
    device
        ``"auto"`` or a torch device.
    smoke
        Whether tiny models are trained for a few steps.
    """

    output: Path = Path("runs")
    weights: tuple[Path, ...] = ()
    device: str = "auto"
    smoke: bool = True
