"""Embed many samples: in input order, batched by length, without work on padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.models.assembly import AssembledModel
from molfun.models.loaders import all_samples, refuse_nothing
from molfun.models.precision import InferencePrecision, computing
from molfun.nn.modes import evaluating
from molfun.parallel.dealing import Share
from molfun.parallel.ranks import Ranks
from molfun.sample import Sample, in_batches, n_residues
from molfun.strict import check_choice
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs
from molfun.trunk import TrunkOutput

Pooling = Literal["mean", "cls"]
BATCH_TOKENS = 4096
"""Residues or atoms per batch."""


def embed(
    model: AssembledModel,
    data: Any,
    pooling: Pooling | None,
    layer: int = -1,
    batch_tokens: int = BATCH_TOKENS,
    precision: InferencePrecision | None = None,
) -> Any:
    """Return the representations of all samples; see `MolfunStructureModel.embed`.

    Raises
    ------
    ConfigError
        If pooling or precision are unknown, or the backbone gives no such layer or token.
    DataError
        Listing the samples that cannot be used.
    """
    samples = all_samples(data)
    refuse_nothing(samples)
    model.check(samples)
    arrays = embedded(
        model, samples, pooling, layer=layer, batch_tokens=batch_tokens, precision=precision
    )
    return arrays if pooling is None else np.stack(arrays)


def embedded(
    model: AssembledModel,
    samples: Sequence[Sample],
    pooling: Pooling | None,
    *,
    layer: int = -1,
    batch_tokens: int = BATCH_TOKENS,
    precision: InferencePrecision | None = None,
    ranks: Ranks | None = None,
) -> list[np.ndarray]:
    """Return one array per sample: (length, channels), or (channels,) with pooling.

    Parameters
    ----------
    model, pooling, layer, batch_tokens, precision
        As in `embed`.
    samples
        Samples that the model has checked.
    ranks
        Processes to which the batches are dealt; those after the first return nothing.
    """
    if pooling is not None:
        check_choice("pooling", pooling, get_args(Pooling))
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be at least 1, got {batch_tokens}.")
    source = pooling or "single"
    backbone = model.backbone
    options = _layer_option(backbone, layer)
    lengths = [_length(sample) for sample in samples]
    costs = [n**backbone.length_power for n in lengths]
    # batches come by length, results go back to their place in the input
    share = Share(list(_batches(lengths, batch_tokens)), costs, ranks or Ranks())
    results: list[np.ndarray] = []
    forward = ForwardPass(backbone, (source,), device=model.device, reader="embed")
    # no cache: each sample runs once
    with computing(model, precision), torch.no_grad(), evaluating(backbone):
        for batch in share.own:
            output = forward.whole(Inputs.of([samples[i] for i in batch]), **options)
            results += _rows(output, source)
    return share.gathered_first(results)


def _layer_option(backbone: Backbone, layer: int) -> dict[str, int]:
    if layer == -1:
        return {}
    if "layer" not in inspect.signature(backbone.forward).parameters:
        raise ConfigError(f"{backbone.display_name} gives the last layer only; leave layer out.")
    return {"layer": layer}


def _rows(output: TrunkOutput, source: str) -> Iterator[np.ndarray]:
    # NumPy has no bfloat16
    values = output.need(source).float().cpu().numpy()
    if source != "single":
        yield from values
        return
    for row, n in zip(values, output.mask.sum(1).tolist(), strict=True):
        yield row[: int(n)].copy()  # a view would keep the padded batch in memory


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Return batches of indices, shortest samples first, within a budget of residues.

    A sample longer than the budget makes a batch of its own.
    """
    # samples of similar length share a batch, so that little of it is padding
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return in_batches(order, lengths.__getitem__, budget)


def _length(sample: Sample) -> int:
    if sample.sequence is not None:
        n = n_residues(sample.sequence)
        return n if sample.max_length is None else min(n, sample.max_length)
    if sample.atoms is not None:
        return len(sample.atoms)
    # features alone tell no length: such a sample fills a batch by itself
    return len(sample.protein) if sample.protein is not None else BATCH_TOKENS
