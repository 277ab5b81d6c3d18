"""Predictions of baselines in a file, so that a finished run that is opened again fits none."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from molfun import __version__
from molfun._io import load_safetensors, save_safetensors
from molfun.errors import MolfunError
from molfun.evaluation.baselines import Labelled, predictions_of
from molfun.evaluation.ragged import packed, unpacked
from molfun.fingerprint import digest
from molfun.registry import BASELINES
from molfun.tasks.base import Task

logger = logging.getLogger(__name__)

Found = dict[str, list[list[np.ndarray]]]
"""Predictions by baseline: one array per sample of each part."""


def kept_predictions(
    path: Path | None, train: Labelled, others: Sequence[Labelled], task: Task
) -> Found:
    """Return `predictions_of` the baselines, from a file if it was made from the same rows.

    A file that cannot be read or written is made again or left out: it only saves seconds.

    Parameters
    ----------
    path
        The file; None keeps nothing.
    train, others, task
        As in `predictions_of`.
    """
    if path is None:
        return predictions_of(train, others, task)
    key = _key(train, others, task)
    try:
        return _unpacked(load_safetensors(path, key=key, sealed=True), len(others))
    except (MolfunError, OSError) as error:
        logger.debug("Baselines are fitted: %s", error)
    found = predictions_of(train, others, task)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_safetensors(path, _packed(found), key=key)
    except (MolfunError, OSError) as error:
        logger.warning("The predictions of baselines are not kept: %s", error)
    return found


def _key(train: Labelled, others: Sequence[Labelled], task: Task) -> str:
    """Return a digest of all inputs and labels, and of what computes on them."""
    rows = (
        text
        for part in (train, *others)
        for sample, label in zip(part.samples, part.labels, strict=True)
        for text in (sample.content_key(), digest([label.tobytes().hex()]))
    )
    scores = (part.scores for part in (train, *others) if part.scores is not None)
    about = [__version__, type(task).__name__, repr(task.config_dict), *BASELINES]
    if train.embedder is not None:
        samples = (sample for part in (train, *others) for sample in part.samples)
        about.append(train.embedder.key_of(samples))
    about += [found.tobytes().hex() for found in scores]
    return digest([*about, *map(str, map(len, (train, *others))), *rows])


def _packed(found: Found) -> dict[str, torch.Tensor]:
    """Return the tensors of each baseline and part."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parts in found.items():
        for i, rows in enumerate(parts):
            tensors |= packed(f"{name}/{i}", rows)
    return tensors


def _unpacked(tensors: Mapping[str, torch.Tensor], n_parts: int) -> Found:
    present = {name.partition("/")[0] for name in tensors}
    # in the order in which they are fitted: of two that are as good, a verdict names the first
    names = [name for name in BASELINES if name in present]
    return {name: [unpacked(tensors, f"{name}/{i}") for i in range(n_parts)] for name in names}
