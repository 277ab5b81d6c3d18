"""Settings of a training run apart from its strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molfun.errors import ConfigError
from molfun.strict import wrong_counts


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of a training run apart from its strategy.

    Parameters
    ----------
    epochs, max_steps
        Largest number of epochs and of optimizer steps; at least one is given.
    seed
        Decides the order of samples and dropout.
    state_dir
        Folder for the resume state; None writes none.
    save_every_steps
        Write the resume state after this many optimizer steps, as well as after every epoch and
        every ten minutes.
    max_nonfinite
        Number of successive windows with a non-finite loss or gradient at which the run stops.
    restore_best
        Whether to leave the best weights in the model at the end, or the last ones.
    identity
        Values that must be equal for a run to be resumed.
    """

    epochs: int | None
    max_steps: int | None = None
    seed: int = 0
    state_dir: Path | None = None
    save_every_steps: int | None = None
    max_nonfinite: int = 5
    restore_best: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("epochs", "max_steps", "save_every_steps")}
        problems = wrong_counts(**{k: n for k, n in counts.items() if n is not None})
        if self.epochs is None and self.max_steps is None:
            problems.append("Give epochs or max_steps.")
        if problems:
            raise ConfigError(" ".join(problems))
