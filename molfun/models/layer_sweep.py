"""Compare the layers of a protein language model as inputs of a head, by one pass over the data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from molfun._shapes import Float32
from molfun.errors import ConfigError
from molfun.models.assembly import autocast
from molfun.models.loaders import all_samples
from molfun.models.structure import MolfunStructureModel
from molfun.nn.modes import evaluating
from molfun.sample import in_batches, n_residues
from molfun.strategies.base import FinetuneStrategy
from molfun.training.history import monitored
from molfun.training.task_head import TaskHead, joined_needs

BATCH_TOKENS = 4096
"""Residues per pass."""


@dataclass(frozen=True)
class LayerSweep:
    """How well a head does on each layer.

    Parameters
    ----------
    rows
        One per layer, from 1 to the last: ``layer``, and the best epoch's row of the history.
    monitor
        Value by which layers are compared, such as ``"val/loss"``.
    best
        Number of the best layer.
    """

    rows: list[dict[str, Any]]
    monitor: str
    best: int


def sweep_layers(
    model: MolfunStructureModel,
    train: Any,
    val: Any,
    *,
    strategy: FinetuneStrategy | str = "head_only",
    epochs: int = 20,
    batch_size: int = 8,
    seed: int = 0,
) -> LayerSweep:
    """Train the head on the mean representation of each layer, and validate it.

    The backbone runs once per sample. The model is left as it was.

    Parameters
    ----------
    model
        Protein language model with a head that reads the mean over residues.
    train, val
        Data sets of sequences.
    strategy
        Strategy that trains the head alone.
    epochs, batch_size, seed
        Of each training.

    Returns
    -------
    LayerSweep
        With the layer of the best validation.

    Raises
    ------
    ConfigError
        If the backbone has no such layers, or the head reads something else.

    Examples
    --------
    >>> from molfun import SequenceDataset
    >>> data = SequenceDataset.from_list([("MKV", 1.0), ("ACDEF", 2.0), ("GGSG", 0.5)])
    >>> model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    >>> [row["layer"] for row in sweep_layers(model, data, data, epochs=1).rows]
    [1, 2]
    """
    _check(model, train, val)
    means = [_layer_means(model, part) for part in (train, val)]
    start = [_state_of(part) for part in model.heads]
    rows, values = [], []
    for layer in range(1, means[0].shape[1] + 1):
        _put_back(model, start)
        parts = [
            part.with_representations(np.ascontiguousarray(found[:, layer - 1]))
            for part, found in zip((train, val), means, strict=True)
        ]
        loader = DataLoader(
            parts[0], batch_size=batch_size, shuffle=True, collate_fn=parts[0].collate_fn
        )
        history = model.fit(loader, parts[1], strategy=strategy, epochs=epochs, seed=seed)
        rows.append({"layer": layer, **history.best})
        value = monitored(history.best, history.monitor)
        values.append(value if history.higher_is_better else -value)
    _put_back(model, start)
    best = int(np.argmax(np.where(np.isnan(values), -np.inf, values)))
    return LayerSweep(rows, history.monitor, rows[best]["layer"])


def _check(model: MolfunStructureModel, *parts: Any) -> None:
    name = model.backbone.display_name
    if not hasattr(model.backbone, "layer_means"):
        raise ConfigError(f"Layers of protein language models are compared, and this is {name}.")
    needs = joined_needs(model.need_heads("The comparison of layers"))
    if needs != ("mean",):
        raise ConfigError(
            f"Layers are compared by the mean over residues, and the head reads "
            f"{' and '.join(needs)}. Use head='linear' or 'mlp' with mean pooling."
        )
    if not all(hasattr(part, "with_representations") for part in parts):
        raise ConfigError("Layers are compared on sequences with one label each.")


def _layer_means(
    model: MolfunStructureModel, data: Any
) -> Float32[np.ndarray, "samples layers channels"]:
    """Return the mean over residues after every block, in input order."""
    backbone: Any = model.backbone
    samples = all_samples(data)
    model.check(samples)
    lengths = [n_residues(backbone.sequence_of(sample)) for sample in samples]
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    found: list[np.ndarray] = [np.zeros(0)] * len(samples)
    with autocast(model), torch.inference_mode(), evaluating(backbone):
        for batch in in_batches(order, lengths.__getitem__, BATCH_TOKENS):
            features = backbone.collate([backbone.featurize(samples[i]) for i in batch])
            features = {name: tensor.to(model.device) for name, tensor in features.items()}
            layers = backbone.layer_means(features).float().cpu().numpy()
            for row, i in enumerate(batch):
                found[i] = layers[:, row]
    return np.stack(found)


def _state_of(part: TaskHead) -> tuple[dict[str, Any], dict[str, Any]]:
    return copy.deepcopy(part.head.state_dict()), copy.deepcopy(part.task.state_dict())


def _put_back(
    model: MolfunStructureModel, states: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    for part, (head, task) in zip(model.heads, states, strict=True):
        part.head.load_state_dict(copy.deepcopy(head))
        part.task.load_state_dict(copy.deepcopy(task))
