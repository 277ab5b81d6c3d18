"""Faster forward passes for openfold's modules, with their weights, adapters and results.

`install` gives the modules of a model classes of the same name that compute the same in another
order; `remove` takes them away again. Parameters, names, hooks and adapters stay where they are,
and what a fast class does not cover (float16, DeepSpeed's kernels, other options) goes to
openfold's own code. What differs, by openfold's class:

``Attention``
    One product for query, key, value and gate; ``scaled_dot_product_attention`` with the bias of
    the pair representation, so that attention weights are never held.
``TriangleMultiplicativeUpdate``
    The four projections come from one product that puts channels first, as the product over
    residues needs them, and no tensor is permuted on the way.
``OuterProductMean``
    For few MSA rows the output projection is applied before the outer product, which then has 128
    channels instead of 1,024.
``PairTransition``, ``MSATransition``
    A few thousand rows at a time, so that the hidden layer stays in the processor's cache.
``Linear``
    The matrix kernel of `molfun.nn.kernels`.
``AlphaFold``, ``TemplateEmbedder``
    Templates are not embedded where all are masked: openfold multiplies the result by 0.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from molfun.nn import attention as attention_module
from molfun.nn import cuequivariance, kernels, tiled
from molfun.nn.attention import attention, gated_attention
from molfun.nn.joint import joint_linear, plain_linear
from molfun.nn.lora import low_rank_parts
from molfun.nn.tiled import relu_mlp, triangle_product

logger = logging.getLogger(__name__)

SHALLOW = 16
"""MSA rows up to which the reassociated outer product is faster, as measured."""
ROWS = 4096
"""Rows of a transition computed at a time where no graph is kept."""
TOKENS = 2**16
"""Tokens of all rows that attend at a time where no graph is kept."""
CHANNELS = 32
"""Channels of a triangle product computed at a time for long proteins without a graph."""
LONG = 384
"""Length from which memory counts for more than speed."""


TOLERANCE = 1e-4
"""Largest relative difference to openfold's own code that `self_test` may find, in float32."""
TF32_TOLERANCE = 1e-2
"""The same for NVIDIA's kernels, whose products are in TF32."""


def self_test(model: Any, *, length: int = 11, with_cuequivariance: bool = False) -> float:
    """Largest relative difference between the two, over outputs and gradients of one block.

    Takes the first Evoformer block of an ``AlphaFold`` with its own classes, and random inputs of
    that length, masked in part: a shallow alignment as it comes, and a deep one with everything in
    small tiles, so that the paths of long proteins are gone through, too.
    """
    plain = _difference(model, length, 3, with_cuequivariance)
    with _small_tiles():
        return max(plain, _difference(model, length, SHALLOW + 1, with_cuequivariance))


@contextlib.contextmanager
def _small_tiles() -> Iterator[None]:
    """Let a small input be divided as a large one is."""
    global ROWS, TOKENS
    before = ROWS, TOKENS, tiled.TILE, kernels.TILE, attention_module.SMALL_BYTES
    ROWS = TOKENS = tiled.TILE = kernels.TILE = 50
    attention_module.SMALL_BYTES = 0
    try:
        yield
    finally:
        ROWS, TOKENS, tiled.TILE, kernels.TILE, attention_module.SMALL_BYTES = before


def _difference(model: Any, length: int, rows: int, with_cuequivariance: bool) -> float:
    block = model.evoformer.blocks[0]
    weight = next(block.parameters())
    if weight.dtype != torch.float32:
        return 0.0
    modes = [module.training for module in block.modules()]
    generator = torch.Generator().manual_seed(0)
    config = model.config.evoformer_stack
    msa = torch.randn(1, rows, length, config.c_m, generator=generator).to(weight.device)
    pair = torch.randn(1, length, length, config.c_z, generator=generator).to(weight.device)
    mask = torch.ones(1, length, device=weight.device)
    mask[:, -3:] = 0
    masks = {
        "msa_mask": mask.unsqueeze(1).expand(-1, rows, -1),
        "pair_mask": mask.unsqueeze(1) * mask.unsqueeze(2),
    }

    def counted(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Without padding, which nothing reads and every kernel fills in its own way."""
        pairs = zip(outputs, (masks["msa_mask"], masks["pair_mask"]), strict=True)
        return [t * m.unsqueeze(-1) for t, m in pairs]

    def run() -> list[torch.Tensor]:
        inputs = [t.clone().requires_grad_() for t in (msa, pair)]
        with torch.enable_grad():
            outputs = counted(block(*(t.clone() for t in inputs), **masks))
            total = torch.stack([t.square().sum() for t in outputs]).sum()
            grads = torch.autograd.grad(total, inputs)
        with torch.no_grad():
            again = counted(block(msa.clone(), pair.clone(), inplace_safe=True, **masks))
        return [*(t.detach() for t in outputs), *grads, *again]

    block.eval()
    stock = run()
    install(block)
    set_cuequivariance(block, with_cuequivariance)
    ours = run()
    remove(block)
    for module, mode in zip(block.modules(), modes, strict=True):
        module.training = mode
    pairs = zip(ours, stock, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def install(model: nn.Module) -> dict[str, int]:
    """Replace the classes of `model`'s modules; how many of each, by openfold's name."""
    replaced: dict[str, int] = {}
    for module in model.modules():
        mixin = _mixin_for(type(module))
        if mixin is not None and mixin.fits(module):
            stock = type(module)
            module.__class__ = _combined(mixin, stock)
            replaced[stock.__name__] = replaced.get(stock.__name__, 0) + 1
    return replaced


def remove(model: nn.Module) -> None:
    """Give the modules their own classes back."""
    for module in model.modules():
        if isinstance(module, _Fast):
            module.__class__ = type(module).stock


def set_cuequivariance(model: nn.Module, on: bool) -> None:
    """Let NVIDIA's kernels compute the triangles of long proteins on a GPU, or our own code."""
    for module in model.modules():
        if isinstance(module, _Fast):
            module.uses_cuequivariance = on


def set_lean(model: nn.Module, lean: bool) -> None:
    """Let the parts of a block keep only their inputs for the backward pass, or all they need.

    Twice the work of their forward pass, a third of the memory of a block.
    """
    for module in model.modules():
        if isinstance(module, _Fast):
            module.lean = lean


class _Fast:
    """A forward pass put in front of that of an openfold class."""

    stock: ClassVar[Any]
    lean = False
    uses_cuequivariance = False

    def _kept(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call, and keep only the arguments for the backward pass where memory is short."""
        if not self.lean or not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False)

    def _by_openfold(self, *args: Any, **kwargs: Any) -> Any:
        """The pass of openfold's own class."""
        return self.stock.forward(self, *args, **kwargs)

    @staticmethod
    def fits(module: Any) -> bool:  # noqa: ARG004  (for those that ask)
        """Return whether the module is of the kind that the fast pass was written for."""
        return True


_COMBINED: dict[tuple[type[_Fast], type], type] = {}


def _combined(mixin: type[_Fast], stock: type) -> type:
    """The class of a module with `mixin` in front of its own; the same at every call."""
    if (mixin, stock) not in _COMBINED:
        _COMBINED[mixin, stock] = type(stock.__name__, (mixin, stock), {"stock": stock})
    return _COMBINED[mixin, stock]


def _mixin_for(stock: type) -> type[_Fast] | None:
    if not stock.__module__.startswith("openfold."):
        return None
    names = {
        "Linear": _Linear,
        "Attention": _Attention,
        "TriangleMultiplicationOutgoing": _TriangleMultiplication,
        "TriangleMultiplicationIncoming": _TriangleMultiplication,
        "OuterProductMean": _OuterProductMean,
        "PairTransition": _Transition,
        "MSATransition": _Transition,
        "AlphaFold": _Templates1,
        "TemplateEmbedder": _Templates2,
    }
    return names.get(stock.__name__)


def _reduced(x: torch.Tensor) -> bool:
    """Return whether another precision than the tensor's own is at work."""
    return x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)


def _all_ones(mask: torch.Tensor | None) -> bool:
    """Return whether a mask changes nothing; a GPU is not asked, since that would stall it."""
    return mask is None or (not mask.is_cuda and bool((mask == 1).all()))


def _unbind(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Tensors along the first dimension; of one alone without a copy in the backward pass."""
    return [tensor.squeeze(0)] if tensor.shape[0] == 1 else tensor.unbind(0)


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """`_unbind` undone."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


# --- layers --------------------------------------------------------------------------------------


class _Linear(_Fast):
    is_plain = True

    @staticmethod
    def fits(module: Any) -> bool:
        return getattr(module, "precision", None) is None

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if _reduced(x) or x.is_cuda:
            result: torch.Tensor = self._by_openfold(x)
            return result
        flat = x.reshape(-1, x.shape[-1])
        return kernels.linear(flat, self.weight, self.bias).view(*x.shape[:-1], -1)


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
        x = self.layer_norm(x)
        result = self._tiled(x)
        if result is None:
            result = self.linear_2(functional.relu(self.linear_1(x), inplace=True))
        return result if _all_ones(mask) else result * mask

    def _tiled(self: Any, x: torch.Tensor) -> torch.Tensor | None:
        """Both layers in one step, where a graph is kept and neither has an adapter."""
        if not torch.is_grad_enabled() or x.is_cuda or _reduced(x):
            return None
        tensors: list[torch.Tensor] = []
        for layer in (self.linear_1, self.linear_2):
            part = low_rank_parts(layer)
            if part is None or part.down is not None or part.bias is None:
                return None
            tensors += [part.weight, part.bias]
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
        others = {k: v for k, v in options.items() if k.startswith("use_") and v}
        others.pop("use_memory_efficient_kernel", None)
        split = _split_biases(biases or [])
        if others or split is None or q_x.ndim < 3 or q_x.dtype == torch.float16 or _is_half(q_x):
            result: torch.Tensor = self._by_openfold(q_x, kv_x, biases, **options)
            return result
        mask, pair = split
        step = max(1, TOKENS // q_x.shape[-2])
        if torch.is_grad_enabled() or q_x is not kv_x or q_x.shape[-3] <= step:
            return self._kept(self._attended, q_x, None if kv_x is q_x else kv_x, mask, pair)
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
        """Attention of `q_x` to `kv_x`, or to itself where that is None."""
        lead, rows = q_x.shape[:-3], q_x.shape[-3]
        count = math.prod(lead)
        if mask is not None:
            mask = None if _is_zero(mask) else mask.expand(*lead, rows, 1, 1, -1)
            mask = mask if mask is None else mask.reshape(count, rows, -1)
        if pair is not None:
            pair = pair.expand(*lead, 1, *pair.shape[-3:])
            pair = pair.reshape(count, *pair.shape[-3:]).contiguous()
        added = [[None] * count if t is None else _unbind(t) for t in (pair, mask)]
        joint = self._joint(q_x) if kv_x is None else None
        if joint is not None:
            inputs = zip(_unbind(joint.view(count, *joint.shape[-3:])), *added, strict=True)
            long = self.uses_cuequivariance and q_x.shape[-2] >= cuequivariance.SHORTEST
            run = cuequivariance.gated_attention if long and pair is not None else gated_attention
            attended = [run(*one, heads=self.no_heads) for one in inputs]
            return self._out(_stack(attended).view(*q_x.shape[:-1], -1))
        kv_x = q_x if kv_x is None else kv_x
        q, k, v = (
            layer(x).view(count, rows, x.shape[-2], self.no_heads, -1).transpose(2, 3)
            for layer, x in ((self.linear_q, q_x), (self.linear_k, kv_x), (self.linear_v, kv_x))
        )
        inputs = zip(_unbind(q), _unbind(k), _unbind(v), *added, strict=True)
        o = _stack([attention(*one) for one in inputs])
        o = o.transpose(2, 3).reshape(*q_x.shape[:-1], -1)
        if self.linear_g is not None:
            o = o * torch.sigmoid(self.linear_g(q_x))
        return self._out(o)

    def _out(self: Any, x: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear_o(x)
        return projected

    def _joint(self: Any, x: torch.Tensor) -> torch.Tensor | None:
        """Queries, keys, values and gates (before their sigmoid) side by side, in one product."""
        if self.linear_g is None or _reduced(x):
            return None
        layers = [self.linear_q, self.linear_k, self.linear_v, self.linear_g]
        joint = joint_linear(layers, x.reshape(-1, x.shape[-1]))
        return None if joint is None else joint.view(*x.shape[:-1], -1)


def _is_half(x: torch.Tensor) -> bool:
    device = x.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _split_biases(
    biases: Sequence[torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
    """The bias over keys (..., rows, 1, 1, keys) and that of pairs (..., 1, heads, queries, keys).

    None where there are others.
    """
    mask = pair = None
    for bias in biases:
        if bias.ndim >= 4 and bias.shape[-3] == 1 and bias.shape[-2] == 1 and mask is None:
            mask = bias
        elif bias.ndim >= 4 and bias.shape[-4] == 1 and pair is None:
            pair = bias
        else:
            return None
    return mask, pair


def _is_zero(mask: torch.Tensor) -> bool:
    return not mask.is_cuda and not bool(mask.any())


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
        if self.uses_cuequivariance and z.shape[-2] >= cuequivariance.SHORTEST and self._is_plain():
            update = self._by_cuequivariance(z, mask)
        else:
            projections = [self.linear_a_p, self.linear_b_p, self.linear_a_g, self.linear_b_g]
            parts = [low_rank_parts(module) for module in projections]
            if _reduced(z) or any(p is None or p.down is not None or p.bias is None for p in parts):
                result: torch.Tensor = self._by_openfold(
                    z,
                    mask,
                    inplace_safe=inplace_safe,
                    _add_with_inplace=_add_with_inplace,
                    **options,
                )
                return result
            update = self._updates(z, mask, parts)
        if not (inplace_safe and _add_with_inplace):
            return update
        z += update
        return z

    def _updates(
        self: Any, z: torch.Tensor, mask: torch.Tensor | None, parts: Sequence[Any]
    ) -> torch.Tensor:
        """The update of a batch of pair representations, one at a time."""
        n = z.shape[-2]
        flat = z.reshape(-1, n, n, z.shape[-1])
        masks = [None] * len(flat) if mask is None or _all_ones(mask) else mask.reshape(-1, n, n)
        pairs = zip(_unbind(flat), masks, strict=True)
        return _stack([self._kept(self._update, *one, parts) for one in pairs]).view(z.shape)

    def _is_plain(self: Any) -> bool:
        """Return whether no layer has an adapter."""
        layers = [m for n, m in self.named_children() if n.startswith("linear_")]
        parts = [low_rank_parts(layer) for layer in layers]
        return all(p is not None and p.down is None for p in parts)

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
        """The update of one pair representation (length, length, channels)."""
        n, keeps_graph = z.shape[0], torch.is_grad_enabled()
        z = self.layer_norm_in(z).view(n * n, -1)
        hidden = parts[0].weight.shape[0]
        step = hidden if keeps_graph or n <= LONG else CHANNELS
        products = [
            self._product(z, mask, parts, slice(i, i + step)) for i in range(0, hidden, step)
        ]
        x = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        del products
        x = self.linear_z(self.layer_norm_out(x))
        gate = torch.sigmoid(self.linear_g(z))
        return (x * gate if keeps_graph else x.mul_(gate)).view(n, n, -1)

    def _product(
        self: Any,
        z: torch.Tensor,
        mask: torch.Tensor | None,
        parts: Sequence[Any],
        channels: slice,
    ) -> torch.Tensor:
        """The product over residues of some channels: (pairs, channels)."""
        return triangle_product(
            z,
            torch.cat([p.weight[channels] for p in parts]),
            torch.cat([p.bias[channels] for p in parts]),
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
        part = low_rank_parts(self.linear_out)
        if _reduced(m) or part is None or part.down is not None:
            result: torch.Tensor = self._by_openfold(
                m, mask, chunk_size=chunk_size, inplace_safe=inplace_safe
            )
            return result
        if mask is None:
            mask = m.new_ones(m.shape[:-1])
        normed = self.layer_norm(m)
        a, b = (layer(normed) * mask.unsqueeze(-1) for layer in (self.linear_1, self.linear_2))
        shape = m.shape[:-3]
        a, b = (t.reshape(-1, *t.shape[-3:]) for t in (a, b))
        compute = self._shallow if m.shape[-3] <= SHALLOW else self._deep
        outer = _stack([compute(*one) for one in zip(_unbind(a), _unbind(b), strict=True)])
        outer = outer.view(*shape, *outer.shape[1:])
        count = torch.einsum("...sb,...sd->...bd", mask, mask).unsqueeze(-1) + self.eps
        return outer / count if torch.is_grad_enabled() else outer.div_(count)

    def _shallow(self: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Project before the outer product: (length, length, channels)."""
        rows, length, hidden = a.shape
        weight = self.linear_out.weight.view(-1, hidden, hidden).permute(1, 2, 0)
        projected = a.reshape(-1, hidden) @ weight.reshape(hidden, -1)
        projected = projected.view(rows, length, hidden, -1).transpose(0, 1)
        left = b.transpose(0, 1).reshape(length, rows * hidden)
        outer = left @ projected.reshape(length, rows * hidden, -1)
        return outer + self.linear_out.bias

    def _deep(self: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """A few residues at a time, so that their outer products stay in the cache."""
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


# --- templates -----------------------------------------------------------------------------------


class _Templates1(_Fast):
    """For ``AlphaFold.embed_templates`` of openfold 1.x."""

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
    """For ``TemplateEmbedder`` of openfold 2.x."""

    def forward(
        self: Any, batch: dict[str, Any], z: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if _any_template(batch):
            return self._by_openfold(batch, z, *args, **kwargs)
        embedder = self.template_single_embedder if self.config.embed_angles else None
        return _no_pairs(batch, z, "template_single_embedding", embedder)


def _no_pairs(
    batch: dict[str, Any], z: torch.Tensor, name: str, embedder: Any
) -> dict[str, torch.Tensor]:
    """Embed templates that are all masked: no pair update, and empty rows for the MSA."""
    embedded = {"template_pair_embedding": z.new_zeros(())}
    if embedder is not None:
        from openfold.utils.feats import build_template_angle_feat

        embedded[name] = embedder(build_template_angle_feat(batch))
    return embedded


def _any_template(batch: dict[str, Any]) -> bool:
    """Return whether a template counts; taken for granted on a GPU, which would have to wait."""
    mask: torch.Tensor = batch["template_mask"]
    return mask.is_cuda or bool(mask.any())
