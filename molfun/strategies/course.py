"""Course of the learning rate: names and defaults that strategies and settings share.

Nothing heavy is imported here, since the help of the command line is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Scheduler = Literal["cosine", "linear", "constant", "step", "plateau", "warmup_cosine"]
SCHEDULERS: tuple[str, ...] = get_args(Scheduler)
Mode = Literal["min", "max"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class Course:
    """Optimizer and schedule of a strategy; `FinetuneStrategy` says what each setting does."""

    optimizer: str = "adamw"
    momentum: float = 0.9
    scheduler: Scheduler = "cosine"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    min_lr_ratio: float = 1e-6
    min_lr: float | None = None
    step_size: int = 30
    gamma: float = 0.1
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    plateau_mode: Mode | None = None
