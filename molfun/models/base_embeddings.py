"""Representations of the weights that a model started from, for baselines."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from molfun._shapes import Float64
from molfun.backbones.own_keys import input_keys
from molfun.fingerprint import digest
from molfun.models.assembly import AssembledModel
from molfun.models.embedding import embedded
from molfun.nn import lora
from molfun.sample import Sample
from molfun.text import counted

logger = logging.getLogger(__name__)


class BaseEmbeddings:
    """Mean over residues by the base weights of a model; each sample runs once.

    The base weights are at hand as long as nothing but adapters and heads was trained: adapters
    are left out of the pass.

    Parameters
    ----------
    model
        Model of sequences, before or after training.

    Examples
    --------
    >>> from molfun import MolfunStructureModel
    >>> model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    >>> BaseEmbeddings(model)([Sample(id="a", sequence="MKV")]).shape
    (1, 32)
    """

    def __init__(self, model: AssembledModel) -> None:
        self._model = model
        self._kept: dict[str, np.ndarray] = {}

    def key_of(self, samples: Iterable[Sample]) -> str:
        """Return a digest of the base weights, the precision, and what is read of samples."""
        keys = map(input_keys(self._model.backbone), samples)
        return digest([self._model.base_fingerprint, self._model.precision, *keys])

    def __call__(self, samples: Sequence[Sample]) -> Float64[np.ndarray, "samples channels"] | None:
        """Return a row per sample; None where the base weights were trained on, or there is none.

        Samples that bring representations of their own, and none at all, have none.
        """
        if not samples or any(sample.features for sample in samples):
            return None
        keys = [*map(input_keys(self._model.backbone), samples)]
        new = {k: s for k, s in zip(keys, samples, strict=True) if k not in self._kept}
        if new and not self._run(new):
            return None
        return np.stack([self._kept[key] for key in keys]).astype(np.float64)

    def _run(self, new: dict[str, Sample]) -> bool:
        backbone = self._model.backbone
        with lora.unmerged(backbone), lora.switched_off(backbone):
            if backbone.base_digests() != self._model.base_digests:
                return False
            logger.info(
                "%s through the base weights, for the baseline of their embeddings.",
                counted(len(new), "variant"),
            )
            rows = embedded(self._model, list(new.values()), "mean")
        self._kept |= dict(zip(new, rows, strict=True))
        return True
