"""Cache features on disk for later epochs and other runs."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from molfun._io import load_safetensors, save_safetensors
from molfun.backbones.base import Backbone, Features
from molfun.backbones.own_keys import input_keys
from molfun.errors import CheckpointError, DataError, MolfunError, RunError
from molfun.sample import Sample

logger = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key; increase it when the same settings give other features or another file."""

_OF_ONE_SAMPLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors of a ``featurize`` that point to the sample; MemoryError and OSError do not."""


class FeatureCache:
    """Features of samples, on disk for those that are slow to featurise.

    Slow are samples with alignments or raw features: a single sequence takes milliseconds, a deep
    alignment seconds. The key of an entry covers the sample's content and the backbone's feature
    settings. Entries are written atomically and may be shared by any number of runs; one that
    cannot be read is computed again.

    Parameters
    ----------
    backbone
        Backbone that computes the features.
    directory
        Folder of the entries; None keeps none.
    """

    def __init__(self, backbone: Backbone, directory: Path | None) -> None:
        self._backbone = backbone
        self._directory = directory

    def features(self, sample: Sample) -> Features:
        """Return the features of `sample`, from disk if they are there.

        Raises
        ------
        DataError
            Naming the sample, if the backbone cannot featurise it.
        """
        slow = sample.alignment_dir is not None or sample.features is not None
        if self._directory is None or not slow or sample.drawn:
            return self._featurize(sample)
        # hashed, since keys hold text of any length and file names do not
        key = f"{FORMAT}|{self._backbone.featurize_key()}|{input_keys(self._backbone)(sample)}"
        name = hashlib.sha256(key.encode()).hexdigest()
        path = self._directory / name[:2] / f"{name}.safetensors"
        stored = _read(path, name)
        if stored is not None:
            return stored
        features = self._featurize(sample)
        try:
            # clone: features may share memory (views of one array), which safetensors refuses
            save_safetensors(path, {n: t.clone() for n, t in features.items()}, key=name)
        except RunError as error:  # a full disk costs time, not the run
            logger.warning("The feature cache stops: %s", error)
            self._directory = None
        return features

    def _featurize(self, sample: Sample) -> Features:
        try:
            return self._backbone.featurize(sample)
        except MolfunError:
            raise
        except _OF_ONE_SAMPLE as error:
            backbone = self._backbone
            raise DataError(
                f"{sample.shown} cannot be made into an input of {backbone.display_name}: "
                f"{type(error).__name__}: {error}. {type(backbone).__name__}.check can refuse such "
                f"samples before a run starts."
            ) from error


def _read(path: Path, name: str) -> Features | None:
    if not path.is_file():
        return None
    try:
        return load_safetensors(path, key=name, sealed=True)
    except CheckpointError as error:
        logger.warning("Cached features are computed again: %s", error)
        return None
