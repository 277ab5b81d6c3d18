"""Tasks: what is predicted, with its loss, scale and metrics."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "BinaryTask": "molfun.tasks.classification",
        "ContactTask": "molfun.tasks.contact",
        "MulticlassTask": "molfun.tasks.classification",
        "MultilabelTask": "molfun.tasks.classification",
        "RegressionTask": "molfun.tasks.regression",
        "Task": "molfun.tasks.base",
    },
)
