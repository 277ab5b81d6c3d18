"""What is handed to NVIDIA's kernels: checked with their published formulas in plain torch.

The kernels themselves run on CUDA alone; where there is a GPU with the package, they are compared.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from molfun import MolfunStructureModel
from molfun.backbones.openfold import fast, kernel_choice
from molfun.errors import ConfigError
from molfun.nn import cuequivariance


def triangle_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The formula of the documentation; (batch, rows, heads, tokens, channels)."""
    assert q.ndim == bias.ndim == 5
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    if mask is not None:
        assert mask.shape == (q.shape[0], q.shape[1], 1, 1, k.shape[3])
        logits = torch.where(mask, logits, torch.tensor(-1e9))
    return torch.softmax(logits, -1) @ v


def triangle_multiplicative_update(
    x: torch.Tensor,
    direction: str = "outgoing",
    mask: torch.Tensor | None = None,
    norm_in_weight: Any = None,
    norm_in_bias: Any = None,
    p_in_weight: Any = None,
    p_in_bias: Any = None,
    g_in_weight: Any = None,
    g_in_bias: Any = None,
    norm_out_weight: Any = None,
    norm_out_bias: Any = None,
    p_out_weight: Any = None,
    p_out_bias: Any = None,
    g_out_weight: Any = None,
    g_out_bias: Any = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """The same; (batch, length, length, channels)."""
    size = (x.shape[-1],)
    x = functional.layer_norm(x, size, norm_in_weight, norm_in_bias, eps)
    ab = functional.linear(x, p_in_weight, p_in_bias)
    ab = ab * functional.linear(x, g_in_weight, g_in_bias).sigmoid()
    if mask is not None:
        ab = ab * mask.unsqueeze(-1)
    a, b = ab.chunk(2, -1)
    terms = "bikd,bjkd->bijd" if direction == "outgoing" else "bkid,bkjd->bijd"
    y = functional.layer_norm(
        torch.einsum(terms, a, b), a.shape[-1:], norm_out_weight, norm_out_bias, eps
    )
    gate = functional.linear(x, g_out_weight, g_out_bias).sigmoid()
    return functional.linear(y, p_out_weight, p_out_bias) * gate


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The two functions in the place of the package, used from one residue on."""
    package = types.ModuleType("cuequivariance_torch")
    package.triangle_attention = triangle_attention  # type: ignore[attr-defined]
    package.triangle_multiplicative_update = triangle_multiplicative_update  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuequivariance_torch", package)
    monkeypatch.setattr(cuequivariance, "SHORTEST", 1)
    return package


def test_a_block_is_openfolds_own(
    tiny_model: Callable[..., MolfunStructureModel], formulas: types.ModuleType
) -> None:
    model: Any = tiny_model(kernels="stock").backbone.model
    assert kernel_choice.self_test(model, with_cuequivariance=True) < kernel_choice.TOLERANCE
    calls: list[int] = []

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return 1.1 * triangle_multiplicative_update(*args, **kwargs)

    formulas.triangle_multiplicative_update = wrong  # type: ignore[attr-defined]
    assert kernel_choice.self_test(model, with_cuequivariance=True) > kernel_choice.TF32_TOLERANCE
    assert calls


def test_adapters_on_the_projections_leave_it_to_our_own_code(
    tiny_model: Callable[..., MolfunStructureModel], formulas: types.ModuleType
) -> None:
    from molfun import LoRAFinetune

    model = tiny_model(kernels="fast")
    LoRAFinetune(rank=2, target_modules=["linear_z"]).setup(model)
    fast.set_cuequivariance(model.backbone.model, True)
    parts = [m for m in model.backbone.modules() if "TriangleMultiplication" in type(m).__name__]
    block = model.backbone.blocks()[0]
    inside = [m for m in parts if m in set(block.modules())]
    assert inside
    assert not any(m._is_plain() for m in inside)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_it_without_a_gpu_is_refused(
    tiny_model: Callable[..., MolfunStructureModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_choice.CUEQUIVARIANCE_SWITCH, "on")
    model = tiny_model(kernels="stock")
    with pytest.raises(ConfigError) as caught:
        model.backbone.set_kernels("fast")
    assert str(caught.value) == (
        "MOLFUN_CUEQUIVARIANCE=on, but torch sees no CUDA GPU. Unset it, or install molfun[cueq] "
        "on a machine with a GPU."
    )


@pytest.mark.skipif(bool(cuequivariance.problem()), reason=cuequivariance.problem() or "-")
def test_the_real_kernels_on_this_gpu() -> None:
    model = MolfunStructureModel("openfold", device="cuda", kernels="stock")
    found: Any = model.backbone.model
    error = kernel_choice.self_test(found, length=cuequivariance.SHORTEST, with_cuequivariance=True)
    assert error < kernel_choice.TF32_TOLERANCE
