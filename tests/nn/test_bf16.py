"""Weights in bfloat16 that are cast once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from molfun.nn import bf16
from molfun.nn.joint import gelu_linear, joint_linear, plain_linear
from molfun.nn.lora import LoRASpec, inject

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here"
)


@pytest.fixture(autouse=True)
def no_graph() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextlib.contextmanager
def casting() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), bf16.cast_once():
        yield


def layers(*, adapted: bool = False) -> nn.ModuleDict:
    """Two layers of one input, the first with an adapter that is not zero."""
    torch.manual_seed(0)
    both = nn.ModuleDict({"a": nn.Linear(48, 64), "b": nn.Linear(48, 32, bias=False)})
    if adapted:
        whole = nn.ModuleDict({"blocks": nn.ModuleList([both])})
        spec = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("a",)}
        inject(whole, LoRASpec(**spec, scope="blocks"))
        nn.init.normal_(both["a"].lora_B["default"].weight)
    return both.requires_grad_(False).eval()


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    assert found.dtype is torch.bfloat16
    return bool((found.float() - wanted).norm() < 1e-2 * wanted.norm())


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "LoRA"])
def test_products_are_those_of_the_layers(adapted: bool) -> None:
    both, x = layers(adapted=adapted), torch.randn(40, 48)
    order = torch.arange(63, -1, -1)
    a, b = both["a"](x), both["b"](x)
    with casting():
        for _ in range(2):  # the second time from what is kept
            assert near(plain_linear(both["a"], x), a)
            assert near(gelu_linear(both["a"], x.to(torch.bfloat16)), functional.gelu(a))
            joined = joint_linear([both["a"], both["b"]], x, [order, None])
            assert joined is not None
            assert near(joined, torch.cat([a[:, order], b], dim=1))


def test_an_adapter_is_added_before_rounding() -> None:
    """The sum of weight and adapter is rounded, as that of a merged model is."""
    both, x = layers(adapted=True), torch.randn(40, 48)
    with casting():
        found = plain_linear(both["a"], x)
    both["a"].merge()
    with casting():
        assert torch.equal(plain_linear(both["a"], x), found)


def test_each_weight_is_cast_once() -> None:
    both, x = layers(), torch.randn(40, 48)
    with casting():
        before = plain_linear(both["a"], x)
        both["a"].weight.zero_()  # nobody may do that in the block
        assert torch.equal(plain_linear(both["a"], x), before)
    with casting():
        assert torch.equal(plain_linear(both["a"], x), both["a"].bias.bfloat16().expand(40, -1))


def test_training_and_other_code_do_not_see_them() -> None:
    both, x = layers(), torch.randn(4, 48)
    assert bf16.current() is None
    with bf16.cast_once():
        assert bf16.current() is None  # the pass is in float32
        assert plain_linear(both["a"], x).dtype is torch.float32
    with casting():
        assert bf16.current() is not None
        with torch.enable_grad():
            assert bf16.current() is None
            assert (
                plain_linear(both["a"], x).dtype is torch.bfloat16
            )  # by autocast, weight by weight
    assert bf16.current() is None
    with pytest.raises(KeyError), bf16.cast_once():
        raise KeyError
    assert bf16.current() is None


def test_units_are_those_of_the_processor() -> None:
    flags = torch.cpu.get_capabilities()
    assert bf16.units() == (
        "amx" if flags.get("amx_bf16") else "avx512" if flags.get("avx512_bf16") else None
    )


def test_a_processor_whose_products_are_wrong_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "product", lambda *_, **__: torch.zeros(33, 24))
    bf16.units.cache_clear()
    assert bf16.units() is None
    monkeypatch.undo()
    bf16.units.cache_clear()
    assert bf16._agrees()
