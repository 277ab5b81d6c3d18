"""Objectives: self-supervised tasks, whose labels come from the input."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "MaskedLMObjective": "molfun.objectives.masked_lm",
        "Objective": "molfun.objectives.base",
    },
)
