"""Simple models of the same training rows, which a fine-tuned model has to beat.

A baseline is one class in `molfun.registry.BASELINES`. Those that apply to the samples and the task
are fitted on at most `MOST_ROWS` training rows and predict the validation and the test part.
"""

from molfun.evaluation.baselines.base import (
    MOST_ROWS,
    Baseline,
    Embedder,
    FeatureBaseline,
    Indexed,
    Labelled,
    predictions_of,
)

__all__ = [
    "MOST_ROWS",
    "Baseline",
    "Embedder",
    "FeatureBaseline",
    "Indexed",
    "Labelled",
    "predictions_of",
]
