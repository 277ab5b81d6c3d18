"""The facade and its checkpoints."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {"MolfunStructureModel": "molfun.models.structure", "Prediction": "molfun.models.structure"},
)
