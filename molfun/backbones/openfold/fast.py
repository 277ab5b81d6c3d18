"""Faster forward passes for openfold's modules, with their weights, adapters and results.

`install` gives the modules of a model classes of the same name that compute the same in another
order; `remove` restores the stock classes. Parameters, names, hooks and adapters are not touched.
Cases that a fast class does not cover (float16, DeepSpeed's kernels, other options) are left to
openfold's own code. docs/performance.md has the gain per module. The differences, by class:

``Attention``
    One product for query, key, value and gate; ``scaled_dot_product_attention`` with the bias of
    the pair representation, so that attention weights are never held.
``TriangleMultiplicativeUpdate``
    The four projections come from one product that puts channels first, as the product over
    residues needs them, so that no tensor is permuted.
``OuterProductMean``
    For few MSA rows the output projection is applied before the outer product, which then has 128
    channels instead of 1,024.
``PairTransition``, ``MSATransition``
    A few thousand rows at a time, so that the hidden layer stays in the processor's cache.
``Linear``
    The matrix kernel of `molfun.nn.kernels`.
``LayerNorm``
    Weights in float32 for an input in bfloat16.
``EvoformerBlock``
    Some blocks of the stack can keep their activations while others are recomputed. In bfloat16 the
    streams stay in float32, and without a graph `half` computes the block.
``StructureModule``, ``AuxiliaryHeads``
    Float32 on a CPU, whatever the trunk runs in.
``AlphaFold``, ``TemplateEmbedder``
    Templates are not embedded if all are masked: openfold multiplies the result by 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from molfun.backbones.openfold import half
from molfun.backbones.openfold.attention_inputs import added_to_logits, covers, split_biases
from molfun.backbones.openfold.half import CHANNELS, LONG, SHALLOW
from molfun.nn import bf16, cuequivariance, kernels
from molfun.nn.attention import attention, gated_attention
from molfun.nn.bf16 import BF16
from molfun.nn.joint import joint_linear, plain_linear
from molfun.nn.lora import LowRankParts, low_rank_parts
from molfun.nn.tiled import relu_mlp, triangle_product

ROWS = 4096
"""Rows per tile of a transition if no graph is kept."""
TOKENS = 2**16
"""Tokens in the rows that attend at a time if no graph is kept."""


def install(model: nn.Module) -> dict[str, int]:
    """Replace the classes of `model`'s modules; return the number of each, by openfold's name."""
    replaced: dict[str, int] = {}
    for module in model.modules():
        mixin = _mixin_for(type(module))
        if mixin is not None and mixin.fits(module):
            stock = type(module)
            module.__class__ = _combined(mixin, stock)  # hooks, names and weights stay
            replaced[stock.__name__] = replaced.get(stock.__name__, 0) + 1
    return replaced


def remove(model: nn.Module) -> None:
    """Restore the stock classes of the modules."""
    for module in model.modules():
        if isinstance(module, _Fast):
            module.__class__ = type(module).stock


def set_cuequivariance(model: nn.Module, on: bool) -> None:
    """Choose NVIDIA's kernels, or Molfun's code, for the triangles of long proteins on a GPU."""
    for module in model.modules():
        if isinstance(module, _Fast):
            module.uses_cuequivariance = on


def set_lean(model: nn.Module, lean: bool) -> None:
    """Set if parts of a block keep only their inputs for the backward pass, or all activations.

    Lean parts run their forward pass twice, and a block takes a third of the memory.
    """
    for module in model.modules():
        if isinstance(module, _Fast):
            module.lean = lean


def set_recomputed(blocks: Sequence[nn.Module], n: int) -> None:
    """Recompute the activations of the first `n` blocks in the backward pass, and keep others'."""
    for i, block in enumerate(blocks):
        if isinstance(block, _Block):
            block.recomputed = i < n


class _Fast:
    """Mix-in whose forward pass takes the place of that of an openfold class."""

    stock: ClassVar[Any]
    lean = False
    uses_cuequivariance = False

    def _kept(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function`; if lean, keep only its arguments for the backward pass."""
        if not self.lean or not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False)  # reentrant fails on frozen weights

    @staticmethod
    def fits(module: Any) -> bool:  # noqa: ARG004  (for those that ask)
        """Return whether the fast pass was written for this kind of module."""
        return True


_COMBINED: dict[tuple[type[_Fast], type], type] = {}


def _combined(mixin: type[_Fast], stock: type) -> type:
    """Return the class with `mixin` in front of `stock`, the same one in every call."""
    if (mixin, stock) not in _COMBINED:
        _COMBINED[mixin, stock] = type(stock.__name__, (mixin, stock), {"stock": stock})
    return _COMBINED[mixin, stock]


def _mixin_for(stock: type) -> type[_Fast] | None:
    if not stock.__module__.startswith("openfold."):
        return None  # a user's class of the same name, or an adapter's wrapper
    names = {
        "EvoformerBlock": _Block,
        "EvoformerBlockCore": _Core,
        "Linear": _Linear,
        "LayerNorm": _LayerNorm,
        "Attention": _Attention,
        "TriangleMultiplicationOutgoing": _TriangleMultiplication,
        "TriangleMultiplicationIncoming": _TriangleMultiplication,
        "OuterProductMean": _OuterProductMean,
        "PairTransition": _Transition,
        "MSATransition": _Transition,
        "StructureModule": _InFloat32,
        "AuxiliaryHeads": _InFloat32,
        "AlphaFold": _Templates1,
        "TemplateEmbedder": _Templates2,
    }
    return names.get(stock.__name__)


def _by_openfold(module: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Run the forward pass of openfold's own class."""
    result: torch.Tensor = module.stock.forward(module, *args, **kwargs)
    return result


def _reduced(x: torch.Tensor) -> bool:
    """Return whether float32 is not the precision in use, by its type or by autocast."""
    return x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)


def _computed(x: torch.Tensor) -> torch.dtype | None:
    """Return the precision in which the fast pass computes products here, or None.

    Under autocast to bfloat16 a CPU multiplies in it, and the streams stay in float32.
    """
    if not _reduced(x):
        return torch.float32
    on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return BF16 if on_cpu and torch.get_autocast_dtype("cpu") is BF16 else None


def _all_ones(mask: torch.Tensor | None) -> bool:
    """Return whether a mask hides nothing; False on a GPU, where asking would stall it."""
    return mask is None or (not mask.is_cuda and bool((mask == 1).all()))


def _normed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Normalise in float32; the result is in the precision of products."""
    if _computed(x) is not BF16:
        normed: torch.Tensor = layer(x)
        return normed
    with torch.autocast("cpu", enabled=False):
        # of bfloat16 in, torch keeps no copy in float32
        normed = functional.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)
    return normed.to(BF16)


def _plain_layers(layers: Sequence[nn.Module]) -> list[LowRankParts] | None:
    """Return weights and biases; None if a layer has no bias, or an adapter, or does more."""
    parts = [low_rank_parts(layer) for layer in layers]
    plain = [p for p in parts if p is not None and p.down is None and p.bias is not None]
    return plain if len(plain) == len(parts) else None


def _unbind(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the tensors along the first dimension; one alone needs no copy when differentiated."""
    return [tensor.squeeze(0)] if tensor.shape[0] == 1 else tensor.unbind(0)


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join tensors along a new first dimension: the inverse of `_unbind`."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


# --- layers --------------------------------------------------------------------------------------


class _Linear(_Fast):
    is_plain = True  # for `molfun.nn.lora`: the output is still weight x + bias

    @staticmethod
    def fits(module: Any) -> bool:
        return getattr(module, "precision", None) is None

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if _reduced(x) or x.is_cuda:
            return _by_openfold(self, x)
        flat = x.reshape(-1, x.shape[-1])
        return kernels.linear(flat, self.weight, self.bias).view(*x.shape[:-1], -1)


class _LayerNorm(_Fast):
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is not BF16 or not bf16.is_chosen():
            return _by_openfold(self, x)
        # openfold rounds the weights as well, and its way out of autocast makes torch warn
        with torch.autocast("cpu", enabled=False):
            return functional.layer_norm(x, self.c_in, self.weight, self.bias, self.eps)


class _Transition(_Fast):
    def _transition(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        x, mask = args if args else (kwargs.get("z", kwargs.get("m")), kwargs["mask"])
        if torch.is_grad_enabled() or x.is_cuda or _reduced(x):
            return self._kept(self._layers, x, mask)
        rows, masks = x.reshape(-1, x.shape[-1]), mask.reshape(-1, 1)
        result = torch.empty_like(rows)
        for i in range(0, len(rows), ROWS):
            result[i : i + ROWS] = self._layers(rows[i : i + ROWS], masks[i : i + ROWS])
        return result.view(x.shape)

    def _layers(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = _normed(self.layer_norm, x)
        result = self._tiled(x)
        if result is None:
            result = self.linear_2(functional.relu(self.linear_1(x), inplace=True))
        return result if _all_ones(mask) else result * mask  # spares a pass over memory

    def _tiled(self: Any, x: torch.Tensor) -> torch.Tensor | None:
        """Run both layers as one autograd function; None without a graph or with an adapter."""
        kind = _computed(x)
        if not torch.is_grad_enabled() or x.is_cuda or kind is None:
            return None
        parts: Any = _plain_layers([self.linear_1, self.linear_2])
        if parts is None:
            return None
        tensors = [tensor.to(kind) for part in parts for tensor in (part.weight, part.bias)]
        return relu_mlp(x.reshape(-1, x.shape[-1]), *tensors).view(x.shape)

    def _chunk(self: Any, x: torch.Tensor, mask: torch.Tensor, chunk_size: int) -> torch.Tensor:  # noqa: ARG002
        result: torch.Tensor = self._transition(x, mask)
        return result


# --- attention -----------------------------------------------------------------------------------


class _Attention(_Fast):
    def forward(
        self: Any,
        q_x: torch.Tensor,
        kv_x: torch.Tensor,
        biases: list[torch.Tensor] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        split = split_biases(biases or [])
        if split is None or not covers(q_x, options):
            return _by_openfold(self, q_x, kv_x, biases, **options)
        if _computed(q_x) is BF16:
            mask, pair = (None if t is None else t.to(BF16) for t in split)
            split = mask, pair
            if kv_x is q_x:  # once, and not by autocast in each product
                kv_x = q_x = q_x.to(BF16)
        return self._in_parts(q_x, None if kv_x is q_x else kv_x, *split)

    def _in_parts(
        self: Any,
        q_x: torch.Tensor,
        kv_x: torch.Tensor | None,
        mask: torch.Tensor | None,
        pair: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend from `q_x` to `kv_x`, or to itself if that is None, some rows at a time."""
        step = max(1, TOKENS // q_x.shape[-2])
        if torch.is_grad_enabled() or kv_x is not None or q_x.shape[-3] <= step:
            return self._kept(self._attended, q_x, kv_x, mask, pair)
        parts = []
        for i in range(0, q_x.shape[-3], step):
            some = q_x[..., i : i + step, :, :]
            of_some = None if mask is None else mask[..., i : i + step, :, :, :]
            parts.append(self._attended(some, None, of_some, pair))
        return torch.cat(parts, dim=-3)

    def _attended(
        self: Any,
        q_x: torch.Tensor,
        kv_x: torch.Tensor | None,
        mask: torch.Tensor | None,
        pair: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend from `q_x` to `kv_x`, or to itself if that is None."""
        count = math.prod(q_x.shape[:-3])
        biases = added_to_logits(mask, pair, q_x.shape[:-2])
        added = [[None] * count if t is None else _unbind(t) for t in biases]
        joint = self._joint(q_x) if kv_x is None else None
        if joint is None:
            return self._out(self._separately(q_x, q_x if kv_x is None else kv_x, added))
        inputs = zip(_unbind(joint.view(count, *joint.shape[-3:])), *added, strict=True)
        long = self.uses_cuequivariance and q_x.shape[-2] >= cuequivariance.SHORTEST
        run = cuequivariance.gated_attention if long and pair is not None else gated_attention
        attended = [run(*one, heads=self.no_heads) for one in inputs]
        return self._out(_stack(attended).view(*q_x.shape[:-1], -1))

    def _separately(
        self: Any, q_x: torch.Tensor, kv_x: torch.Tensor, added: Sequence[Sequence[Any]]
    ) -> torch.Tensor:
        """Attend with one product per projection, if they cannot be one product."""
        rows, heads = q_x.shape[-3], self.no_heads
        q, k, v = (
            layer(x).view(len(added[0]), rows, x.shape[-2], heads, -1).transpose(2, 3)
            for layer, x in ((self.linear_q, q_x), (self.linear_k, kv_x), (self.linear_v, kv_x))
        )
        inputs = zip(_unbind(q), _unbind(k), _unbind(v), *added, strict=True)
        o = _stack([attention(*one) for one in inputs])
        o = o.transpose(2, 3).reshape(*q_x.shape[:-1], -1)
        return o if self.linear_g is None else o * torch.sigmoid(self.linear_g(q_x))

    def _out(self: Any, x: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear_o(x)
        return projected

    def _joint(self: Any, x: torch.Tensor) -> torch.Tensor | None:
        """Return queries, keys, values and gates (before the sigmoid) from one product, or None."""
        if self.linear_g is None or _computed(x) is None:
            return None
        layers = [self.linear_q, self.linear_k, self.linear_v, self.linear_g]
        joint = joint_linear(layers, x.reshape(-1, x.shape[-1]))
        return None if joint is None else joint.view(*x.shape[:-1], -1)


# --- triangles -----------------------------------------------------------------------------------


class _TriangleMultiplication(_Fast):
    @staticmethod
    def fits(module: Any) -> bool:
        return hasattr(module, "linear_a_p")  # not openfold 2's fused one

    def forward(
        self: Any,
        z: torch.Tensor,
        mask: torch.Tensor | None = None,
        inplace_safe: bool = False,
        _add_with_inplace: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        update = self._updated(z, mask)
        if update is None:
            given = {"inplace_safe": inplace_safe, "_add_with_inplace": _add_with_inplace}
            return _by_openfold(self, z, mask, **given, **options)
        if not (inplace_safe and _add_with_inplace):
            return update
        z += update
        return z

    def _updated(self: Any, z: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return the update by NVIDIA's kernel or Molfun's; None if neither covers the layers."""
        if self.uses_cuequivariance and z.shape[-2] >= cuequivariance.SHORTEST and self._is_plain():
            return self._by_cuequivariance(z, mask)
        projections = [self.linear_a_p, self.linear_b_p, self.linear_a_g, self.linear_b_g]
        parts = None if _computed(z) is None else _plain_layers(projections)
        return None if parts is None else self._updates(z, mask, parts)

    def _updates(
        self: Any, z: torch.Tensor, mask: torch.Tensor | None, parts: Sequence[Any]
    ) -> torch.Tensor:
        """Return the updates of a batch of pair representations, computed one at a time."""
        n = z.shape[-2]
        flat = z.reshape(-1, n, n, z.shape[-1])
        masks = [None] * len(flat) if mask is None or _all_ones(mask) else mask.reshape(-1, n, n)
        pairs = zip(_unbind(flat), masks, strict=True)
        return _stack([self._kept(self._update, *one, parts) for one in pairs]).view(z.shape)

    def _is_plain(self: Any) -> bool:
        """Return whether no layer has an adapter."""
        layers = [m for n, m in self.named_children() if n.startswith("linear_")]
        return _plain_layers(layers) is not None

    def _by_cuequivariance(self: Any, z: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        n = z.shape[-2]
        joined = {
            f"{name}_in_{kind}": torch.cat([getattr(layer, kind) for layer in layers])
            for name, layers in {
                "p": (self.linear_a_p, self.linear_b_p),
                "g": (self.linear_a_g, self.linear_b_g),
            }.items()
            for kind in ("weight", "bias")
        }
        single = {
            f"{name}_{kind}": getattr(layer, kind)
            for name, layer in {
                "norm_in": self.layer_norm_in,
                "norm_out": self.layer_norm_out,
                "p_out": self.linear_z,
                "g_out": self.linear_g,
            }.items()
            for kind in ("weight", "bias")
        }
        return cuequivariance.triangle_update(
            z.reshape(-1, n, n, z.shape[-1]),
            None if mask is None else mask.reshape(-1, n, n),
            {**joined, **single},
            outgoing=self._outgoing,
            eps=self.layer_norm_in.eps,
        ).view(z.shape)

    def _update(
        self: Any, z: torch.Tensor, mask: torch.Tensor | None, parts: Sequence[Any]
    ) -> torch.Tensor:
        """Return the update of one pair representation (length, length, channels)."""
        n, keeps_graph = z.shape[0], torch.is_grad_enabled()
        z = _normed(self.layer_norm_in, z).view(n * n, -1)
        hidden = parts[0].weight.shape[0]
        step = hidden if keeps_graph or n <= LONG else CHANNELS
        products = [
            self._product(z, mask, parts, slice(i, i + step)) for i in range(0, hidden, step)
        ]
        x = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        del products  # before the next temporaries: it is as large as the pair representation
        x = self.linear_z(_normed(self.layer_norm_out, x))
        gate = torch.sigmoid(self.linear_g(z))
        return (x * gate if keeps_graph else x.mul_(gate)).view(n, n, -1)  # a graph needs x

    def _product(
        self: Any,
        z: torch.Tensor,
        mask: torch.Tensor | None,
        parts: Sequence[Any],
        channels: slice,
    ) -> torch.Tensor:
        """Return the product over residues of some channels: (pairs, channels)."""
        return triangle_product(
            z,
            torch.cat([p.weight[channels] for p in parts]).to(z.dtype),
            torch.cat([p.bias[channels] for p in parts]).to(z.dtype),
            None if mask is None else mask.reshape(-1),
            outgoing=self._outgoing,
        )


# --- outer product -------------------------------------------------------------------------------


class _OuterProductMean(_Fast):
    def forward(
        self: Any,
        m: torch.Tensor,
        mask: torch.Tensor | None = None,
        chunk_size: int | None = None,
        inplace_safe: bool = False,
    ) -> torch.Tensor:
        if _computed(m) is None or _plain_layers([self.linear_out]) is None:
            return _by_openfold(self, m, mask, chunk_size=chunk_size, inplace_safe=inplace_safe)
        if mask is None:
            mask = m.new_ones(m.shape[:-1])
        normed = _normed(self.layer_norm, m)
        a, b = (layer(normed) * mask.unsqueeze(-1) for layer in (self.linear_1, self.linear_2))
        shape = m.shape[:-3]
        a, b = (t.reshape(-1, *t.shape[-3:]) for t in (a, b))
        compute = self._shallow if m.shape[-3] <= SHALLOW else self._deep
        outer = _stack([compute(*one) for one in zip(_unbind(a), _unbind(b), strict=True)])
        outer = outer.view(*shape, *outer.shape[1:])
        count = torch.einsum("...sb,...sd->...bd", mask, mask).unsqueeze(-1) + self.eps
        return outer / count if torch.is_grad_enabled() else outer.div_(count)

    def _shallow(self: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Project before the outer product (both are linear): (length, length, channels)."""
        rows, length, hidden = a.shape
        weight = self.linear_out.weight.to(a.dtype).view(-1, hidden, hidden).permute(1, 2, 0)
        projected = a.reshape(-1, hidden) @ weight.reshape(hidden, -1)
        projected = projected.view(rows, length, hidden, -1).transpose(0, 1)
        left = b.transpose(0, 1).reshape(length, rows * hidden)
        outer = left @ projected.reshape(length, rows * hidden, -1)
        return outer + self.linear_out.bias.to(a.dtype)

    def _deep(self: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Compute a few residues at a time, so that their outer products stay in the cache."""
        rows, length, hidden = a.shape
        right = b.reshape(rows, length * hidden)
        step = max(1, ROWS // length)
        parts = []
        for i in range(0, length, step):
            some = a[:, i : i + step]
            n = some.shape[1]
            outer = some.reshape(rows, n * hidden).t() @ right
            outer = outer.view(n, hidden, length, hidden).transpose(1, 2)
            parts.append(plain_linear(self.linear_out, outer.reshape(n * length, -1)))
        return torch.cat(parts).view(length, length, -1)


# --- blocks --------------------------------------------------------------------------------------


class _Block(_Fast):
    """Keep the inputs of this block alone for the backward pass, whatever other blocks keep.

    Openfold's own setting is the same for all blocks of a stack.
    """

    recomputed = False

    def forward(self: Any, m: Any, z: Any, *args: Any, **kwargs: Any) -> Any:
        m, z = _streams(m, z)
        if not args and hasattr(self, "core") and half.covers(self, m, z, kwargs):
            return self._in_half(m, z, **kwargs)
        run = super().forward  # type: ignore[misc]  # of the stock class
        if not self.recomputed or not torch.is_grad_enabled():
            return run(m, z, *args, **kwargs)
        return checkpoint(run, m, z, *args, use_reentrant=False, **kwargs)

    def _in_half(self: Any, m: Any, z: Any, *, msa_mask: Any, **options: Any) -> Any:
        m = _own(m, options)
        half.attend_msa(self, m, z, msa_mask)
        known = ("pair_mask", "inplace_safe", "_mask_trans")
        kept = {name: options[name] for name in known if name in options}
        return self.core([m, z], msa_mask=msa_mask, **kept)


def _streams(m: Any, z: Any) -> tuple[Any, Any]:
    """Return MSA and pairs in float32 where autocast made them bfloat16 on a CPU: they are sums."""
    if not bf16.is_chosen():
        return m, z
    on_cpu = (t is not None and t.device.type == "cpu" for t in (m, z))
    found = [t.float() if cpu else t for t, cpu in zip((m, z), on_cpu, strict=True)]
    return found[0], found[1]


def _own(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Return a tensor that may be changed in place, contiguous: views of it are updated."""
    if options.get("inplace_safe"):
        return x.contiguous()
    return x.clone(memory_format=torch.contiguous_format)


class _Core(_Fast):
    """The part of a block after its MSA attention, of openfold 1.x."""

    def forward(self: Any, input_tensors: Any, *args: Any, **kwargs: Any) -> Any:
        m, z = _streams(*input_tensors)
        if args or not half.covers(self, m, z, kwargs):
            input_tensors[:] = m, z
            return super().forward(input_tensors, *args, **kwargs)  # type: ignore[misc]
        m, z = _own(m, kwargs), _own(z, kwargs)
        masks = kwargs["msa_mask"], kwargs["pair_mask"]
        half.update_pairs(self, m, z, *masks, masks_transitions=kwargs.get("_mask_trans", True))
        return m, z


# --- after the trunk -----------------------------------------------------------------------------


class _InFloat32(_Fast):
    """Compute coordinates and confidences in float32 under autocast to bfloat16 on a CPU.

    They take a fiftieth of the time of a pass.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = super().forward  # type: ignore[misc]  # of the stock class
        if not bf16.is_chosen():
            return run(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            given, named = tree_map(_not_half, (args, kwargs))
            return run(*given, **named)


def _not_half(x: Any) -> Any:
    return x.float() if torch.is_tensor(x) and x.dtype is BF16 else x


# --- templates -----------------------------------------------------------------------------------


class _Templates1(_Fast):
    """Skip masked templates in ``AlphaFold.embed_templates`` of openfold 1.x."""

    @staticmethod
    def fits(module: Any) -> bool:
        return hasattr(module, "template_angle_embedder")

    def embed_templates(
        self: Any, batch: dict[str, Any], z: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        config = self.config.template
        special = config.get("offload_templates") or config.get("average_templates")
        if special or _any_template(batch):
            return self.stock.embed_templates(self, batch, z, *args, **kwargs)
        embedder = self.template_angle_embedder if config.embed_angles else None
        return _no_pairs(batch, z, "template_angle_embedding", embedder)


class _Templates2(_Fast):
    """Skip masked templates in ``TemplateEmbedder`` of openfold 2.x."""

    def forward(
        self: Any, batch: dict[str, Any], z: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if _any_template(batch):
            return _by_openfold(self, batch, z, *args, **kwargs)
        embedder = self.template_single_embedder if self.config.embed_angles else None
        return _no_pairs(batch, z, "template_single_embedding", embedder)


def _no_pairs(
    batch: dict[str, Any], z: torch.Tensor, name: str, embedder: Any
) -> dict[str, torch.Tensor]:
    """Embed templates that are all masked: no update of pairs, and their rows of the MSA."""
    embedded = {"template_pair_embedding": z.new_zeros(())}
    if embedder is not None:
        from openfold.utils.feats import build_template_angle_feat

        embedded[name] = embedder(build_template_angle_feat(batch))
    return embedded


def _any_template(batch: dict[str, Any]) -> bool:
    """Return whether a template is not masked; True on a GPU, where asking would stall it."""
    mask: torch.Tensor = batch["template_mask"]
    return mask.is_cuda or bool(mask.any())
