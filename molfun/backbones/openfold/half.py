"""Evoformer blocks in bfloat16 on a CPU, without a graph, within float32 residual streams.

The pair and MSA representations stay in float32. Each module normalises some rows of one in
float32, computes in bfloat16 with float32 sums, and adds its update in place while the rows are in
the processor's cache. Weights are cast once, with their adapters folded in. The softmax is
computed in float32. docs/performance.md has the speed and the error of a whole trunk.

`molfun.backbones.openfold.fast` calls this in passes under ``torch.autocast`` to bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from molfun._shapes import Float
from molfun.nn import bf16
from molfun.nn.bf16 import BF16, CastWeights
from molfun.nn.joint import whole_weights
from molfun.nn.lora import low_rank_parts

TILE = 2048
"""Rows of the pair representation at a time: with 128 channels in float32, one megabyte."""
LOGIT_BYTES = 2**20
"""Bytes of attention weights at a time."""
CHANNELS = 32
"""Channels of a triangle product computed at a time for long proteins, if no graph is kept."""
LONG = 384
"""Length above which a triangle product runs in parts: memory then matters more than speed."""
SHALLOW = 16
"""MSA rows up to which the outer product is reassociated: 4 to 23 times faster at 2, slow at 33."""

SPECIAL = ("use_lma", "use_flash", "_offload_inference")
"""Options of openfold's own ways to save memory."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def covers(block: Any, m: Any, z: Any, options: dict[str, Any]) -> bool:
    """Return whether this module can take the pass of `block`, at the precision of autocast."""
    if torch.is_grad_enabled() or block.training or any(map(options.get, SPECIAL)):
        return False
    if not bf16.is_chosen() or bf16.units() is None:
        return False
    if any(t is None or t.is_cuda or t.dtype is not torch.float32 for t in (m, z)):
        return False
    found: bool = _cast().kept((id(block), "covers"), lambda: _is_plain(block))
    return found


def _is_plain(block: Any) -> bool:
    """Return whether the block has products with low-rank adapters alone, and nobody listens."""
    for module in block.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if type(module).__name__ == "Linear":
            part = low_rank_parts(module)
            if part is None or type(part.weight) not in _PLAIN:
                return False
    return True


def _cast() -> CastWeights:
    """Return the weights of the `cast_once` around this call, or of this call alone."""
    return bf16.current() or CastWeights()


def attend_msa(block: Any, m: torch.Tensor, z: torch.Tensor, msa_mask: torch.Tensor) -> None:
    """Add the updates of row and column attention to `m`, of shape (..., rows, length, channels).

    Supplement of Jumper et al. 2021, algorithms 7 and 8.
    """
    run = _Run(_cast())
    with torch.autocast("cpu", enabled=False):
        for some, pairs, mask in zip(_flat(m, 3), _flat(z, 3), _flat(msa_mask, 2), strict=True):
            run.attend_rows(block.msa_att_row, some, pairs, mask)
            run.attend_columns(block.msa_att_col, some, mask)


def update_pairs(
    core: Any,
    m: torch.Tensor,
    z: torch.Tensor,
    msa_mask: torch.Tensor,
    pair_mask: torch.Tensor,
    *,
    masks_transitions: bool,
) -> None:
    """Add the updates of what a block does after its MSA attention to `m` and `z`.

    Supplement of Jumper et al. 2021, algorithm 6.
    """
    run = _Run(_cast())
    samples = zip(_flat(m, 3), _flat(z, 3), _flat(msa_mask, 2), _flat(pair_mask, 2), strict=True)
    with torch.autocast("cpu", enabled=False):
        for msa, pairs, of_msa, of_pairs in samples:
            hidden = _or_none(of_pairs)
            run.transition(core.msa_transition, msa, of_msa if masks_transitions else None)
            run.outer_product(core.outer_product_mean, msa, pairs, of_msa)
            run.multiply(core.tri_mul_out, pairs, hidden, outgoing=True)
            run.multiply(core.tri_mul_in, pairs, hidden, outgoing=False)
            run.attend_pairs(core.tri_att_start, pairs, hidden)
            columns = None if hidden is None else hidden.t()
            run.attend_pairs(core.tri_att_end, pairs.transpose(0, 1), columns)
            run.transition(core.pair_transition, pairs, hidden if masks_transitions else None)


def _flat(x: torch.Tensor, dims: int) -> torch.Tensor:
    """Return views of the samples of a batch, along the first dimension."""
    return x.view(-1, *x.shape[-dims:]) if x.is_contiguous() else x.reshape(-1, *x.shape[-dims:])


def _or_none(mask: torch.Tensor) -> torch.Tensor | None:
    """Return None for a mask that hides nothing."""
    return None if bool((mask == 1).all()) else mask


def _tiles(n: int, size: int = TILE) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


class _Run:
    """The modules of blocks, with weights that are cast once."""

    def __init__(self, cast: CastWeights) -> None:
        self.cast = cast

    # --- layers ----------------------------------------------------------------------------------

    def linear(self, layers: Sequence[Any], x: torch.Tensor, *, then: Any = "none") -> torch.Tensor:
        """Return the outputs of linear layers side by side."""
        return self.cast.linear(layers, x, lambda: whole_weights(layers), then=then)

    def pair_bias(self, layer: Any, x: torch.Tensor, n: int) -> Float[torch.Tensor, "heads n n"]:
        """Return what the pairs add to the logits of each head."""
        return self.linear([layer], x).view(n, n, -1).permute(2, 0, 1).contiguous()

    # --- attention -------------------------------------------------------------------------------

    def attend_rows(self, module: Any, m: Any, z: Any, mask: torch.Tensor) -> None:
        """Add the update of attention along each MSA row, biased by the pairs."""
        bias = None
        if module.pair_bias:
            normed = _normed_rows(module.layer_norm_z, z)
            bias = self.pair_bias(module.linear_z, normed.view(-1, normed.shape[-1]), len(normed))
        x = _normed(module.layer_norm_m, m)
        self._attend(module.mha, x, bias, self._hidden(module, _or_none(mask)), into=m)

    def attend_columns(self, module: Any, m: Any, mask: torch.Tensor) -> None:
        """Add the update of attention along each column of the MSA."""
        own = module._msa_att
        x = _normed(own.layer_norm_m, m).transpose(0, 1).contiguous()
        hidden = _or_none(mask)
        hidden = None if hidden is None else self._hidden(own, hidden.t())
        self._attend(own.mha, x, None, hidden, into=m.transpose(0, 1))

    def attend_pairs(self, module: Any, z: Any, mask: torch.Tensor | None) -> None:
        """Add the update of triangle attention along the rows of `z`, which may be transposed."""
        x = _normed_rows(module.layer_norm, z)
        bias = self.pair_bias(module.linear, x.view(-1, x.shape[-1]), len(x))
        self._attend(module.mha, x, bias, self._hidden(module, mask), into=z)

    @staticmethod
    def _hidden(module: Any, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return what a mask (rows, keys) adds to logits."""
        return None if mask is None else (module.inf * (mask - 1)).to(BF16)[:, None, None, :]

    def _attend(
        self,
        module: Any,
        x: Float[torch.Tensor, "rows tokens channels"],
        bias: Float[torch.Tensor, "heads tokens tokens"] | None,
        hidden: Float[torch.Tensor, "rows 1 1 tokens"] | None,
        *,
        into: Float[torch.Tensor, "rows tokens channels"],
    ) -> None:
        """Attend within each row, and add the update to `into`."""
        tokens, heads = x.shape[1], module.no_heads
        step = max(1, LOGIT_BYTES // (2 * heads * tokens * max(tokens, 32)))
        for rows in _tiles(len(x), step):
            flat = x[rows].reshape(-1, x.shape[-1])
            if tokens == 1:  # the softmax over one key is 1
                joint = self.linear([module.linear_v, module.linear_g], flat)
                found, gate = joint.chunk(2, dim=-1)
            else:
                joint = self._joint(module, flat).view(-1, tokens, 4, heads, module.c_hidden)
                q, k, v = joint[:, :, :3].permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
                logits = torch.bmm(q, k.transpose(1, 2)).view(-1, heads, tokens, tokens)
                if bias is not None:
                    logits += bias
                if hidden is not None:
                    logits += hidden[rows]
                weights = torch.softmax(logits, dim=-1).view(-1, tokens, tokens)
                found = torch.bmm(weights, v).view(-1, heads, tokens, v.shape[-1])
                found = found.transpose(1, 2).reshape(len(flat), -1)
                gate = joint[:, :, 3].reshape(len(flat), -1)
            update = self.linear([module.linear_o], found * gate.sigmoid())
            into[rows] += update.float().view(-1, tokens, into.shape[-1])

    def _joint(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Return queries, keys, values and gates; the queries are scaled."""
        layers = [module.linear_q, module.linear_k, module.linear_v, module.linear_g]

        def whole() -> bf16.Weights:
            weight, bias = whole_weights(layers)
            scales = weight.new_ones(len(weight))
            scales[: len(weight) // 4] = module.c_hidden**-0.5
            return weight * scales.unsqueeze(1), None if bias is None else bias * scales

        return self.cast.linear(layers, x, whole)

    # --- others ----------------------------------------------------------------------------------

    def transition(self, module: Any, x: Any, mask: torch.Tensor | None) -> None:
        """Add the update of a transition to each row (supplement, algorithms 9 and 15)."""
        x = x.view(-1, x.shape[-1])
        masks = None if mask is None or _or_none(mask) is None else mask.reshape(-1, 1)
        for tile in _tiles(len(x)):
            normed = _normed(module.layer_norm, x[tile])
            hidden = self.linear([module.linear_1], normed, then="relu")
            update = self.linear([module.linear_2], hidden).float()
            x[tile] += update if masks is None else update.mul_(masks[tile])

    def multiply(self, module: Any, z: Any, mask: torch.Tensor | None, *, outgoing: bool) -> None:
        """Add the update of a triangle multiplication (supplement, algorithms 11 and 12)."""
        n, pairs = len(z), z.view(-1, z.shape[-1])
        masks = None if mask is None else mask.reshape(-1).to(BF16)
        x = torch.empty(pairs.shape, dtype=BF16)
        for tile in _tiles(len(pairs)):
            x[tile] = _normed(module.layer_norm_in, pairs[tile])
        hidden = module.c_hidden
        products = torch.empty(hidden, n, n, dtype=BF16)
        for some in _tiles(hidden, hidden if n <= LONG else CHANNELS):
            a, b = self._gated(module, x, masks, some).view(2, -1, n, n)
            factors = (a, b.transpose(1, 2)) if outgoing else (a.transpose(1, 2), b)
            torch.bmm(*factors, out=products[some])
        products = products.view(hidden, -1)
        for tile in _tiles(len(pairs)):
            normed = _normed(module.layer_norm_out, products[:, tile].t().float())
            update = self.linear([module.linear_z], normed)
            update *= self.linear([module.linear_g], x[tile]).sigmoid_()
            pairs[tile] += update.float()

    def _gated(
        self, module: Any, x: torch.Tensor, mask: torch.Tensor | None, channels: slice
    ) -> Float[torch.Tensor, "2*channels pairs"]:
        """Return a and b of some channels, channels first as the product over residues wants it."""
        layers = [module.linear_a_p, module.linear_b_p, module.linear_a_g, module.linear_b_g]

        def whole() -> tuple[torch.Tensor, torch.Tensor]:
            weights, biases = zip(*(_weights(layer) for layer in layers), strict=True)
            return torch.stack(weights).to(BF16), torch.stack(biases).to(BF16).unsqueeze(2)

        # of all channels: how many run at a time depends on the length
        found = self.cast.kept((id(module), "projections"), whole)
        weight, bias = (part[:, channels].flatten(0, 1) for part in found)
        gated = torch.empty(len(weight) // 2, len(x), dtype=BF16)
        for tile in _tiles(len(x)):
            projected = bf16.product(weight, x[tile]).add_(bias)
            values, gates = projected.chunk(2)
            torch.mul(values, gates.sigmoid_(), out=gated[:, tile])
            if mask is not None:
                gated[:, tile] *= mask[tile]
        return gated

    def outer_product(self, module: Any, m: Any, z: Any, mask: torch.Tensor) -> None:
        """Add the mean of outer products over the MSA rows (supplement, algorithm 10)."""
        x = _normed(module.layer_norm, m).view(-1, m.shape[-1])
        both = self.linear([module.linear_1, module.linear_2], x).view(*m.shape[:2], 2, -1)
        a, b = (both * mask[:, :, None, None].to(BF16)).unbind(2)
        count = (mask.t() @ mask).unsqueeze(-1) + module.eps
        outer = self._projected_first if len(m) <= SHALLOW else self._projected_last
        for tile, update in outer(module, a, b):
            z[tile] += update.float().div_(count[tile])

    def _projected_first(self, module: Any, a: Any, b: Any) -> Iterator[tuple[slice, torch.Tensor]]:
        """Project before the outer product; both are linear."""
        rows, length, hidden = a.shape
        layer = module.linear_out

        def whole() -> tuple[torch.Tensor, torch.Tensor]:
            weight, bias = _weights(layer)
            by_b = weight.view(-1, hidden, hidden).permute(1, 0, 2).reshape(-1, hidden)
            return by_b.to(BF16), bias.to(BF16)

        weight, bias = self.cast.kept((id(layer), "by b"), whole)
        projected = bf16.product(b.reshape(-1, hidden), weight)  # of each row and residue
        projected = projected.view(rows, length, hidden, -1).transpose(1, 2)
        projected = projected.reshape(rows * hidden, -1)
        left = a.transpose(0, 1).reshape(length, rows * hidden)
        for tile in _tiles(length, max(1, TILE // length)):
            yield tile, (left[tile] @ projected).view(-1, length, len(bias)) + bias

    def _projected_last(self, module: Any, a: Any, b: Any) -> Iterator[tuple[slice, torch.Tensor]]:
        rows, length, hidden = a.shape
        right = b.reshape(rows, -1)
        for tile in _tiles(length, max(1, TILE // length)):
            outer = a[:, tile].reshape(rows, -1).t().contiguous() @ right
            outer = outer.view(-1, hidden, length, hidden).transpose(1, 2)
            update = self.linear([module.linear_out], outer.reshape(-1, hidden * hidden))
            yield tile, update.view(-1, length, update.shape[-1])


def _normed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Normalise in float32 and round to bfloat16."""
    normed = functional.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)
    return normed.to(BF16)


def _normed_rows(layer: Any, z: torch.Tensor) -> torch.Tensor:
    """Normalise the pairs in tiles, in the order in which they are in memory."""
    found = torch.empty(z.shape, dtype=BF16)
    if z.is_contiguous():
        z, into = z, found
    else:  # transposed: whole vectors are written to their places
        z, into = z.transpose(0, 1), found.transpose(0, 1)
    for tile in _tiles(len(z), max(1, TILE // z.shape[1])):
        into[tile] = _normed(layer, z[tile])
    return found


def _weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of a layer that has one."""
    weight, bias = whole_weights([layer])
    return weight, weight.new_zeros(len(weight)) if bias is None else bias
