"""Small samples and a small model for the contracts; they need no optional package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molfun.models.structure import MolfunStructureModel
from molfun.sample import Sample, SampleBatch

LENGTHS = (7, 12, 9, 5, 11, 8, 10, 6)
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
SERIES_CONFIG = {
    "name": "transformer", "d_input": 3, "d_model": 16, "n_heads": 2, "dropout": 0.0,
}  # fmt: skip


def sequences(
    n: int = 6, *, lengths: Sequence[int] = LENGTHS, seed: int = 0, prefix: str = "s"
) -> list[Sample]:
    """Make `n` random protein sequences; the label is the share of alanine."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(RESIDUES), lengths[i % len(lengths)])) for i in range(n)]
    return [
        Sample(id=f"{prefix}{i}", sequence=text, target=text.count("A") / len(text))
        for i, text in enumerate(texts)
    ]


def series(
    n: int = 6, *, lengths: Sequence[int] = LENGTHS, seed: int = 0, prefix: str = "s"
) -> list[Sample]:
    """Make `n` series of three noisy waves, a tenth of the values missing; label: frequency."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        rate = rng.uniform(0.2, 1.5)
        steps = np.arange(lengths[i % len(lengths)])[:, None]
        values = np.sin(rate * steps + rng.uniform(0, 6, (1, 3))) + 0.1 * rng.normal(
            size=(len(steps), 3)
        )
        mask = rng.uniform(size=values.shape) > 0.1
        features = {"timeseries": values.astype(np.float32), "mask": mask}
        samples.append(Sample(id=f"{prefix}{i}", features=features, target=float(rate)))
    return samples


def in_batches(samples: Sequence[Sample], batch_size: int) -> list[SampleBatch]:
    """Cut samples into batches; the last one may be smaller."""
    starts = range(0, len(samples), batch_size)
    return [SampleBatch(samples[i : i + batch_size]) for i in starts]


def series_model(**settings: Any) -> MolfunStructureModel:
    """Build a transformer of two blocks for `series`, on the CPU."""
    return MolfunStructureModel("timeseries", config=SERIES_CONFIG, device="cpu", **settings)
