"""Tasks: what is predicted, with its loss, scale and metrics."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__, {"RegressionTask": "molfun.tasks.regression", "Task": "molfun.tasks.base"}
)
