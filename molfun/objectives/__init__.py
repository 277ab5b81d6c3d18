"""Objectives: self-supervised tasks, whose labels come from the input."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "ContrastiveObjective": "molfun.objectives.contrastive",
        "JEPAObjective": "molfun.objectives.jepa",
        "MAEObjective": "molfun.objectives.mae",
        "MaskedLMObjective": "molfun.objectives.masked_lm",
        "Objective": "molfun.objectives.base",
    },
)
