"""Matrix products of either kernel against torch's own, with every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from molfun.errors import ConfigError
from molfun.nn import kernels


@pytest.fixture(params=["torch", "onednn"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        kernels.set_matrix_kernel(request.param)
    except ConfigError as refused:
        pytest.skip(str(refused))
    yield request.param
    kernels.set_matrix_kernel("auto")


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


CASES: dict[
    str, tuple[list[tuple[int, ...]], Callable[..., torch.Tensor], Callable[..., torch.Tensor]]
]
CASES = {
    "linear": (
        [(17, 24), (32, 24), (32,)],
        kernels.linear,
        lambda x, w, b: x @ w.t() + b,
    ),
    "channel_first": (
        [(17, 24), (32, 24), (32,)],
        kernels.channel_first_linear,
        lambda x, w, b: (x @ w.t() + b).t(),
    ),
    "adapted": (
        [(17, 24), (32, 24), (32,), (4, 24), (32, 4)],
        kernels.adapted_linear,
        lambda x, w, b, down, up: x @ w.t() + b + x @ down.t() @ up.t(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(kernel: str, name: str) -> None:
    shapes, ours, plain = CASES[name]
    inputs = tensors(*shapes)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = plain(*exact)
    weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    for frozen in range(2 ** len(inputs)):
        trained = [i for i in range(len(inputs)) if not frozen >> i & 1]
        given = [t.detach().requires_grad_(i in trained) for i, t in enumerate(inputs)]
        found = ours(*given)
        assert torch.allclose(found.double(), expected, atol=1e-5)
        assert found.requires_grad == bool(trained)
        if not trained:
            continue
        grads = torch.autograd.grad((found * weights).sum(), [given[i] for i in trained])
        wanted = torch.autograd.grad(
            (expected * weights).sum(), [exact[i] for i in trained], retain_graph=True
        )
        for gradient, true in zip(grads, wanted, strict=True):
            assert torch.allclose(gradient.double(), true, atol=1e-4)


def test_a_frozen_weight_keeps_no_input(kernel: str) -> None:
    """Saved activations are most of the memory of a training step."""
    x, weight, bias = tensors((17, 24), (32, 24), (32,))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        kernels.linear(x, weight.detach(), bias.detach())
    assert x.numel() not in kept


@pytest.mark.parametrize(("amd", "chosen"), [(True, "onednn"), (False, "torch")])
def test_the_choice_depends_on_nothing_that_varies(
    monkeypatch: pytest.MonkeyPatch, amd: bool, chosen: str
) -> None:
    monkeypatch.setattr(kernels, "_is_amd", lambda: amd)
    monkeypatch.setattr(kernels, "_agrees", lambda: True)
    monkeypatch.setattr(kernels, "_probed", None)
    assert kernels.matrix_kernel() == chosen
    monkeypatch.setattr(kernels, "_probed", None)
    monkeypatch.setattr(kernels, "_agrees", lambda: False)
    assert kernels.matrix_kernel() == "torch"


def test_unknown_and_impossible_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"matrix kernel 'mkl'"):
        kernels.set_matrix_kernel("mkl")  # type: ignore[arg-type]
    monkeypatch.setattr(kernels, "_agrees", lambda: False)
    with pytest.raises(ConfigError, match=r"'onednn' cannot be used .* Use 'auto' or 'torch'\."):
        kernels.set_matrix_kernel("onednn")
