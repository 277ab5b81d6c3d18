"""Attention within packed sequences on a CPU, by batched products of matrices in the cache.

Torch's fused kernel multiplies tiles of 32 queries, which is slow for the narrow heads of small
language models, slower with MKL's products on AMD processors, and slowest of all in the backward
pass in bfloat16. Here each head of a sequence is one matrix:

* the scores of some heads at a time are one batched product, few enough for the cache;
* their exponentials are not divided by the sum before the product with the values but after it; a
  further value of 1 gives the sum;
* scores are shifted by their largest only where a sum shows that float32 needs it;
* the backward pass computes the weights again, so that a pass keeps no more than the fused kernel.

In bfloat16 the weights of the values, the values and the gradients are rounded; queries, keys,
scores and exponents stay in float32. docs/performance.md has the speed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from molfun._shapes import Bool, Float
from molfun.nn import bf16, kernels

CHUNK_BYTES = 2**21
"""Bytes of scores computed at a time."""
REACH = 2.0**64
"""Sums of exponentials up to this, and down to its inverse, are as exact as with a shift."""

LEAST_WIDTH = 128
"""Channels of all heads from which it pays: each sequence costs several calls."""
SMALL = 16**3
"""Size of a product up to which torch leaves oneDNN for kernels whose rounding depends on where the
factors are in memory, and how many there are."""

_LOG2_E = 1 / math.log(2)


class Blocks:
    """Places of the vectors of all tokens and heads where each head of a sequence is one matrix.

    A packed batch holds them by tokens; batched products want them by sequences and heads.

    Parameters
    ----------
    lengths
        Number of tokens of each sequence.
    heads
        Number of attention heads.
    """

    def __init__(self, lengths: Sequence[int], heads: int) -> None:
        self.lengths, self.heads = tuple(lengths), heads
        # an inference tensor that is kept would make a later training step fail
        with torch.inference_mode(mode=False):
            ranges = torch.arange(sum(lengths)).split(list(lengths))
            self._tokens = torch.cat([own.repeat(heads) for own in ranges])
            of_heads = torch.arange(heads)
            self._heads = torch.cat([of_heads.repeat_interleave(n) for n in lengths])
            self._orders: dict[int, torch.Tensor] = {}
            self._inverse = torch.argsort(self._order(heads))

    def of(
        self, x: Float[torch.Tensor, "tokens heads channels"]
    ) -> Float[torch.Tensor, "tokens_x_heads channels"]:
        """Return the vectors by sequences and heads."""
        channels = x.shape[-1]
        if x.stride(2) != 1 or x.stride(1) != channels or x.stride(0) % channels:
            x = x.contiguous()
        # queries, keys and values may stand side by side for each token
        step = x.stride(0) // channels
        n = (len(x) - 1) * step + self.heads if len(x) else 0
        return x.as_strided((n, channels), (channels, 1)).index_select(0, self._order(step))

    def back(
        self, rows: Float[torch.Tensor, "tokens_x_heads channels"]
    ) -> Float[torch.Tensor, "tokens heads channels"]:
        """Return vectors by sequences and heads in the order of the tokens."""
        return rows.index_select(0, self._inverse).unflatten(0, (-1, self.heads))

    def _order(self, step: int) -> torch.Tensor:
        if step not in self._orders:
            self._orders[step] = self._tokens * step + self._heads
        return self._orders[step]


def takes(q: torch.Tensor, width: int, *, dropout: float, bias: torch.Tensor | None) -> bool:
    """Return whether `attend` is the faster way here, at the precision of `q` or of autocast.

    Parameters
    ----------
    q
        Queries, of any shape.
    width
        Channels of all heads.
    dropout, bias
        Those of the attention: `attend` has no dropout, and gives the bias no gradient.
    """
    if q.device.type != "cpu" or dropout or (bias is not None and bias.requires_grad):
        return False
    if width < LEAST_WIDTH:
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") is bf16.BF16 and bf16.units() is not None
    return q.dtype is torch.float32 and kernels.multiplies_batches()


def attend(
    q: Float[torch.Tensor, "queries heads channels"],
    k: Float[torch.Tensor, "tokens heads channels"],
    v: Float[torch.Tensor, "tokens heads channels"],
    asking: Blocks,
    asked: Blocks,
    *,
    bias: Float[torch.Tensor, "heads longest longest"] | None = None,
    scale: float | None = None,
) -> Float[torch.Tensor, "queries heads_x_channels"]:
    """Attend within each sequence of a batch.

    Parameters
    ----------
    q, k, v
        Queries, keys and values of all sequences; values in bfloat16 are multiplied in it.
    asking, asked
        Places of the queries, and of the keys and values.
    bias
        Added to the scores by position, without a gradient; a shorter sequence takes the corner
        at 0, 0.
    scale
        Factor of the scores; None is ``1 / sqrt(channels)``.

    Returns
    -------
    Tensor
        float32.

    Examples
    --------
    >>> places = Blocks([2, 3], heads=4)
    >>> x = torch.ones(5, 4, 8)
    >>> attend(x, x, x, places, places).shape
    torch.Size([5, 32])
    """
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    runs = _Runs(asking, asked, bias, scale=factor, channels=q.shape[-1])
    found: torch.Tensor = _Attend.apply(q, k, v, runs)
    return found


class _Run(NamedTuple):
    queries: int
    tokens: int
    sequences: int
    small: bool


class _Runs:
    """The sequences of a batch; those of one length that follow each other are a run.

    A run is one batch of matrices, (sequences * heads, queries or tokens, channels), since each
    costs a few calls. Small sequences are runs of their own, at the start of a cache line, so that
    no bit of a sequence depends on the others of its batch.
    """

    def __init__(
        self,
        asking: Blocks,
        asked: Blocks,
        bias: torch.Tensor | None,
        *,
        scale: float,
        channels: int,
    ) -> None:
        self.asking, self.asked, self.scale = asking, asked, scale
        self.bias = None if bias is None else bias.detach().float() * _LOG2_E
        self._channels = channels
        self._runs = list(self._found())

    def is_small(self, queries: int, tokens: int) -> bool:
        """Return whether one of the products of a sequence is."""
        return self.asking.heads * queries * min(tokens, self._channels) <= SMALL

    def _found(self) -> Iterator[_Run]:
        pairs = zip(self.asking.lengths, self.asked.lengths, strict=True)
        for (queries, tokens), same in itertools.groupby(pairs):
            count, small = len(list(same)), self.is_small(queries, tokens)
            # a bias is that of the heads of one sequence
            if small or self.bias is not None:
                yield from [_Run(queries, tokens, 1, small)] * count
            else:
                yield _Run(queries, tokens, count, small)

    def of_queries(self, rows: torch.Tensor, *, to_write: bool = False) -> list[torch.Tensor]:
        """Return the matrices of each run, copies of small ones unless they are written to."""
        return self._split(rows, [run.queries for run in self._runs], to_write)

    def of_tokens(self, rows: torch.Tensor, *, to_write: bool = False) -> list[torch.Tensor]:
        """Return the matrices of each run, as `of_queries` does."""
        return self._split(rows, [run.tokens for run in self._runs], to_write)

    def _split(
        self, rows: torch.Tensor, lengths: Sequence[int], to_write: bool
    ) -> list[torch.Tensor]:
        matrices = [run.sequences * self.asking.heads for run in self._runs]
        parts = rows.split([m * n for m, n in zip(matrices, lengths, strict=True)])
        copied = [run.small and not to_write for run in self._runs]
        return [
            (part.clone() if copy else part).view(m, n, rows.shape[1])
            for part, copy, m, n in zip(parts, copied, matrices, lengths, strict=True)
        ]

    def chunks(self, q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[slice, slice]]:
        """Yield which matrices of a run, and which of their queries, to take at a time."""
        matrices, queries, tokens, heads = len(q), q.shape[1], k.shape[1], self.asking.heads
        if not queries:
            return
        rows = max(1, min(queries, CHUNK_BYTES // (4 * tokens)))
        together = max(1, CHUNK_BYTES // (4 * tokens * rows))
        # whole sequences, or parts into which each of them divides
        if together >= heads:
            together -= together % heads
        else:
            together = next(n for n in range(together, 0, -1) if heads % n == 0)
        for first, row in itertools.product(range(0, matrices, together), range(0, queries, rows)):
            yield slice(first, first + together), slice(row, row + rows)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, runs: _Runs) -> Any:
        with torch.autocast("cpu", enabled=False), _products():
            queries = runs.asking.of(q).float().mul_(runs.scale * _LOG2_E)
            keys, values = runs.asked.of(k).float(), _with_ones(runs.asked.of(v))
            weighted, ctx.shifts = _weighted(queries, keys, values, runs)
            # in float32: rows this short take ten times as long to divide in bfloat16
            weighted = weighted.float()
            sums = weighted[:, -1:]
            found = weighted[:, :-1] / sums
            ctx.runs, ctx.types = runs, (q.dtype, k.dtype, v.dtype)
            ctx.save_for_backward(queries, keys, values, found, sums)
            return runs.asking.back(found).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        queries, keys, values, found, sums = ctx.saved_tensors
        runs: _Runs = ctx.runs
        with torch.autocast("cpu", enabled=False), _products():
            given = runs.asking.of(grad.float().unflatten(1, (runs.asking.heads, -1)))
            # A weight is power / sum, so the gradient of a score is power * (given @ value - total)
            # / sum, with the total over all values of the row. As the values end in 1, it is one
            # product of these:
            total = (given * found).sum(1, keepdim=True)
            given = torch.cat([given, -total], dim=1).div_(sums).to(values.dtype)
            of_q, of_k, of_v = _gradients(queries, keys, values, given, runs, ctx.shifts)
            grads = (
                runs.asking.back(of_q.mul_(runs.scale)),
                runs.asked.back(of_k.mul_(1 / _LOG2_E)),
                runs.asked.back(of_v),
            )
            return (*(t.to(kind) for t, kind in zip(grads, ctx.types, strict=True)), None)


def _products() -> contextlib.AbstractContextManager[None]:
    return kernels.batches() if kernels.multiplies_batches() else contextlib.nullcontext()


def _with_ones(values: torch.Tensor) -> torch.Tensor:
    whole = values.new_ones(len(values), values.shape[1] + 1)
    whole[:, :-1] = values
    return whole


_Shifts = list["Bool[torch.Tensor, 'matrices'] | None"]
"""Which matrices of each run have their scores shifted; None for none."""


def _weighted(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, runs: _Runs
) -> tuple[torch.Tensor, _Shifts]:
    """Return the values weighted by powers of 2, in their precision."""
    found = values.new_empty(len(queries), values.shape[1])
    parts = list(
        zip(
            runs.of_queries(queries),
            runs.of_tokens(keys),
            runs.of_tokens(values),
            runs.of_queries(found, to_write=True),
            strict=True,
        )
    )
    shifts: _Shifts = [None] * len(parts)
    for q, k, v, into in parts:
        _weigh(runs, q, k, v, None, into)
    if not bool(_within_reach(found[:, -1])):
        for i, (q, k, v, into) in enumerate(parts):
            # by matrix, so that no sequence depends on the others of its batch
            far = ~torch.stack([_within_reach(sums) for sums in into[..., -1]])
            if bool(far.any()):
                shifts[i] = far
                _weigh(runs, q, k, v, far, into)
    return found, shifts


def _within_reach(sums: torch.Tensor) -> torch.Tensor:
    """Return whether all are; NaN is not."""
    return ((sums > 1 / REACH) & (sums < REACH)).all()


def _weigh(
    runs: _Runs,
    q: Float[torch.Tensor, "matrices queries channels"],
    k: Float[torch.Tensor, "matrices tokens channels"],
    v: Float[torch.Tensor, "matrices tokens values"],
    shifts: Bool[torch.Tensor, "matrices"] | None,
    into: Float[torch.Tensor, "matrices queries values"],
) -> None:
    small = runs.is_small(q.shape[1], k.shape[1])
    for some, rows in runs.chunks(q, k):
        powers = _powers(q, k, runs.bias, shifts, some, rows, v.dtype)
        if small or not into[some, rows].is_contiguous():
            into[some, rows] = torch.bmm(powers, v[some])
        else:
            torch.bmm(powers, v[some], out=into[some, rows])


def _powers(
    q: torch.Tensor,
    k: torch.Tensor,
    bias: torch.Tensor | None,
    shifts: torch.Tensor | None,
    some: slice,
    rows: slice,
    dtype: torch.dtype,
) -> Float[torch.Tensor, "some rows tokens"]:
    """Return ``2 ** score``, with the scores in float32."""
    queries, keys = q[some, rows], k[some].transpose(1, 2)
    shape = (len(queries), queries.shape[1], keys.shape[2])
    n = math.prod(shape)
    # with room behind them: torch's exponential of the last few numbers of a thread, fewer than fit
    # into its registers, can differ by a bit from that of the same numbers elsewhere
    step = 64 * torch.get_num_threads()
    memory = queries.new_empty(-(-n // step) * step)
    scores = memory[:n].view(shape)
    if bias is None:
        torch.bmm(queries, keys, out=scores)
    else:
        torch.baddbmm(bias[some, rows, : shape[2]], queries, keys, out=scores)
    if shifts is not None:
        scores -= scores.amax(-1, keepdim=True) * shifts[some, None, None]
    powers = memory if dtype is memory.dtype else torch.empty_like(memory, dtype=dtype)
    return torch.exp2(memory, out=powers)[:n].view(shape)


def _gradients(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    given: torch.Tensor,
    runs: _Runs,
    shifts: _Shifts,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values, without the factors of the scores."""
    kind, channels = values.dtype, keys.shape[1]
    # keys and values that no query asks for get nothing
    found = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(keys)
    parts = zip(
        runs.of_queries(queries),
        runs.of_tokens(keys),
        runs.of_tokens(values),
        runs.of_queries(given),
        runs.of_queries(queries.to(kind)),
        runs.of_tokens(keys.to(kind)),
        runs.of_queries(found[0], to_write=True),
        runs.of_tokens(found[1], to_write=True),
        runs.of_tokens(found[2], to_write=True),
        shifts,
        strict=True,
    )
    for q, k, v, g, rounded_q, rounded_k, of_q, of_k, of_v, shift in parts:
        for some, rows in runs.chunks(q, k):
            powers = _powers(q, k, runs.bias, shift, some, rows, kind)
            own = g[some, rows]
            first = rows.start == 0
            _add(of_v[some], torch.bmm(powers.transpose(1, 2), own[..., :channels]), first)
            scores = torch.bmm(own, v[some].transpose(1, 2)).mul_(powers)
            _add(of_q[some, rows], torch.bmm(scores, rounded_k[some]), True)
            _add(of_k[some], torch.bmm(scores.transpose(1, 2), rounded_q[some, rows]), first)
    return found


def _add(total: torch.Tensor, part: torch.Tensor, first: bool) -> None:
    """Add a part to a sum, of which nothing is set before the first part."""
    total.copy_(part) if first else total.add_(part)
