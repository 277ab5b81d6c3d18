"""The fast kernels against openfold's own code, in float32 and in float64."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from molfun.backbones.openfold import OpenFoldBackbone, fast, kernel_choice
from molfun.errors import ConfigError
from molfun.nn import attention as attention_module
from molfun.nn import kernels as matrix_kernels
from molfun.nn import lora
from molfun.sample import Sample
from molfun.training import FinetuneStrategy

LENGTH = 13


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs take the way of large ones, whatever the environment asks for."""
    monkeypatch.delenv("MOLFUN_KERNELS", raising=False)
    monkeypatch.setattr(attention_module, "SMALL_BYTES", 0)


@pytest.fixture(scope="module")
def published() -> OpenFoldBackbone:
    """Two blocks of the published widths; every weight counts."""
    from openfold.config import model_config

    config = model_config("model_1_ptm")
    config.model.evoformer_stack.no_blocks = 2
    config.model.extra_msa.extra_msa_stack.no_blocks = 1
    config.model.structure_module.no_blocks = 1
    return disturbed(OpenFoldBackbone(config, fill_zero_init=0.05))


@pytest.fixture(scope="module")
def tiny() -> OpenFoldBackbone:
    return disturbed(OpenFoldBackbone("tiny", fill_zero_init=0.1))


def disturbed(backbone: OpenFoldBackbone) -> OpenFoldBackbone:
    """Biases and norms start at 0 and 1, which would hide mistakes.

    Hidden units get a sign that no rounding changes: one that is cut off in one run and not in the
    other moves gradients by thousandths.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for module in backbone.modules():
            if type(module).__name__ in ("PairTransition", "MSATransition"):
                module.linear_1.bias[::2] = 12
                module.linear_1.bias[1::2] = -12
    return backbone.eval()


def error(ours: torch.Tensor, theirs: torch.Tensor, floor: float = 0.0) -> float:
    difference = (ours.double() - theirs.double()).norm()
    return float(difference / theirs.double().norm().clamp_min(floor))


def floor_of(tensors: dict[str, torch.Tensor]) -> float:
    """Below this norm a gradient is zero but for rounding, as that of a softmax over one key."""
    return 1e-3 * max(float(t.double().norm()) for t in tensors.values())


def block_inputs(
    backbone: OpenFoldBackbone, rows: int, *, batch: int = 1, masked: bool = True
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    config = backbone.model.config.evoformer_stack
    msa = torch.randn(batch, rows, LENGTH, config.c_m, generator=generator)
    pair = torch.randn(batch, LENGTH, LENGTH, config.c_z, generator=generator)
    mask = torch.ones(batch, LENGTH)
    msa_mask = torch.ones(batch, rows, LENGTH)
    if masked:
        mask[:, -3:] = 0
        mask[0, 0] = 0
        msa_mask = msa_mask * mask.unsqueeze(1)
        msa_mask[:, -1, : LENGTH // 2] = 0
        if rows > 2:
            msa_mask[:, -2] = 0
    masks = {"msa_mask": msa_mask, "pair_mask": mask.unsqueeze(1) * mask.unsqueeze(2)}
    return [msa, pair], masks


def run_block(
    block: nn.Module, inputs: list[torch.Tensor], masks: dict[str, torch.Tensor], *, grad: bool
) -> dict[str, torch.Tensor]:
    """Outputs, and gradients for inputs and trained weights, where what is masked counts not."""
    given = [t.clone().requires_grad_(grad) for t in inputs]
    with torch.set_grad_enabled(grad):
        msa, pair = block(*(t.clone() for t in given), inplace_safe=not grad, **masks)
    shown = {"msa": msa * masks["msa_mask"].unsqueeze(-1)}
    shown["pair"] = pair * masks["pair_mask"].unsqueeze(-1)
    if not grad:
        return shown
    names, weights = zip(*((n, p) for n, p in block.named_parameters() if p.requires_grad))  # noqa: B905
    generator = torch.Generator().manual_seed(2)
    total = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in shown.values())
    grads = torch.autograd.grad(total, [*given, *weights], allow_unused=True)
    found = zip(("grad msa", "grad pair", *names), grads, strict=True)
    return {n: t.detach() for n, t in shown.items()} | {
        n: torch.zeros(1) if g is None else g for n, g in found
    }


def double(tensors: Any) -> Any:
    if isinstance(tensors, dict):
        return {k: t.double() for k, t in tensors.items()}
    return [t.double() for t in tensors]


# --- a block --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("rows", "batch", "masked"),
    [(1, 1, False), (2, 1, True), (2, 3, True), (fast.SHALLOW + 1, 2, True), (33, 1, False)],
)
@pytest.mark.parametrize("kernel", ["torch", "onednn"])
def test_a_block_is_as_near_to_float64_as_openfolds_own(
    published: OpenFoldBackbone, rows: int, batch: int, masked: bool, grad: bool, kernel: str
) -> None:
    inputs, masks = block_inputs(published, rows, batch=batch, masked=masked)
    block = copy.deepcopy(published.model.evoformer.blocks[0])
    stock = run_block(block, inputs, masks, grad=grad)
    truth = run_block(copy.deepcopy(block).double(), double(inputs), double(masks), grad=grad)
    assert fast.install(block)["Attention"] == 4
    try:
        matrix_kernels.set_matrix_kernel(kernel)  # type: ignore[arg-type]
        ours = run_block(block, inputs, masks, grad=grad)
    except ConfigError as refused:
        pytest.skip(str(refused))
    finally:
        matrix_kernels.set_matrix_kernel("auto")
    assert ours.keys() == stock.keys() == truth.keys()
    low = floor_of(truth)
    for name, exact in truth.items():
        assert error(ours[name], stock[name], low) < 2e-5, name
        if not masked:  # a mask of -1e9 rounds in float32, so both differ from float64 there
            theirs = error(stock[name], exact, low)
            assert error(ours[name], exact, low) < 3 * theirs + 1e-6, name


def test_gradients_reach_what_adapters_of_every_layer_train(published: OpenFoldBackbone) -> None:
    layers = {
        n.rsplit(".", 1)[-1]
        for n, m in published.model.evoformer.blocks[0].named_modules()
        if isinstance(m, nn.Linear)
    }
    stock, ours = copy.deepcopy(published), copy.deepcopy(published)
    spec = lora.LoRASpec(
        rank=2, alpha=4, dropout=0.0, target_modules=tuple(layers), scope=published.block_prefix
    )
    found = []
    for backbone in (stock, ours):
        lora.inject(backbone, spec)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(lora.is_adapter(name))
            if lora.is_adapter(name):
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        if backbone is ours:
            fast.install(backbone.model)
        inputs, masks = block_inputs(published, 3)
        found.append(run_block(backbone.model.evoformer.blocks[0], inputs, masks, grad=True))
    assert len(found[0]) > 80
    for name, gradient in found[0].items():
        assert error(found[1][name], gradient, floor_of(found[0])) < 5e-5, name


# --- the whole model ------------------------------------------------------------------------------


def batch_of(backbone: OpenFoldBackbone, samples: list[Sample]) -> dict[str, torch.Tensor]:
    return backbone.collate([backbone.featurize(s) for s in samples])


@pytest.mark.parametrize("masked", [False, True])
def test_the_model_gives_the_same_outputs(
    published: OpenFoldBackbone, samples: Callable[..., list[Sample]], masked: bool
) -> None:
    batch = batch_of(published, samples(2 if masked else 1, lengths=(9, 14)))
    outputs = ("single", "pair", "structure")
    with torch.no_grad():
        stock = published(batch, outputs=outputs)
        published.set_kernels("fast")
        ours = published(batch, outputs=outputs)
        published.set_kernels("stock")
        again = published(batch, outputs=outputs)
    assert torch.equal(stock.need("pair"), again.need("pair"))
    valid = stock.mask.bool()
    assert error(ours.need("single")[valid], stock.need("single")[valid]) < 1e-5
    square = valid.unsqueeze(1) & valid.unsqueeze(2)
    assert error(ours.need("pair")[square], stock.need("pair")[square]) < 1e-5
    assert stock.structure is not None
    assert ours.structure is not None
    for name in ("positions", "plddt"):
        assert error(ours.structure[name][valid], stock.structure[name][valid]) < 1e-4, name


def with_templates(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    changed = dict(batch)
    for name in ("template_mask", "template_pseudo_beta_mask", "template_torsion_angles_mask",
                 "template_all_atom_mask"):  # fmt: skip
        changed[name] = torch.ones_like(batch[name])
    for name in ("template_all_atom_positions", "template_pseudo_beta"):
        changed[name] = 10 * torch.randn(batch[name].shape, generator=generator)
    return changed


@pytest.mark.parametrize("present", [False, True])
def test_templates_are_skipped_only_where_all_are_masked(
    tiny: OpenFoldBackbone, samples: Callable[..., list[Sample]],
    monkeypatch: pytest.MonkeyPatch, present: bool,
) -> None:  # fmt: skip
    batch = batch_of(tiny, samples(2))
    assert not batch["template_mask"].any()
    batch = with_templates(batch) if present else batch
    (stack,) = (m for m in tiny.modules() if type(m).__name__ == "TemplatePairStack")
    calls = []
    with stack.register_forward_pre_hook(lambda *_: calls.append(1)), torch.no_grad():
        stock = tiny(batch, outputs=("single", "pair"))
        tiny.set_kernels("fast")
        ours = tiny(batch, outputs=("single", "pair"))
        tiny.set_kernels("stock")
    assert len(calls) == (2 if present else 1)
    assert error(ours.need("pair"), stock.need("pair")) < 1e-5
    assert error(ours.need("single"), stock.need("single")) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["lora", "partial", "full"])
def test_strategies_get_the_same_gradients_with_dropout(
    tiny_model: Callable[..., Any], samples: Callable[..., list[Sample]],
    name: str, checkpointing: bool,
) -> None:  # fmt: skip
    found = []
    for kernels in ("stock", "fast"):
        model = tiny_model(seed=1)
        model.backbone.checkpointing = checkpointing
        options = {"unfreeze_last_n": 1} if name == "partial" else {}
        strategy = FinetuneStrategy.from_dict({"name": name, **options})
        strategy.setup(model)
        model.backbone.set_kernels(kernels)
        model.train()
        # with templates: where they are skipped, their dropout draws no random numbers
        batch = with_templates(batch_of(model.backbone, samples(2)))
        torch.manual_seed(11)
        outputs = model(batch)
        outputs["prediction"].square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    stock, ours = ({n: torch.zeros(1) if g is None else g for n, g in f.items()} for f in found)
    low = floor_of(stock)
    assert sum(float(g.norm()) > low for g in stock.values()) > 5
    for parameter, gradient in stock.items():
        assert error(ours[parameter], gradient, low) < 1e-4, parameter


def test_long_proteins_are_computed_in_parts(
    published: OpenFoldBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, masks = block_inputs(published, 3, batch=2)
    block = copy.deepcopy(published.model.evoformer.blocks[1])
    fast.install(block)
    whole = run_block(block, inputs, masks, grad=False)
    for name, value in {"LONG": 5, "TOKENS": 30, "ROWS": 7, "CHANNELS": 24, "SHALLOW": 1}.items():
        monkeypatch.setattr(fast, name, value)
    monkeypatch.setattr(attention_module, "CHUNK_BYTES", 2000)
    parts = run_block(block, inputs, masks, grad=False)
    for name in whole:
        assert error(parts[name], whole[name]) < 1e-5
    with_graph = run_block(block, inputs, masks, grad=True)
    fast.remove(block)
    stock = run_block(block, inputs, masks, grad=True)
    for name, gradient in stock.items():
        assert error(with_graph[name], gradient, floor_of(stock)) < 2e-5, name


def test_bfloat16_stays_near(published: OpenFoldBackbone) -> None:
    inputs, masks = block_inputs(published, 3)
    block = copy.deepcopy(published.model.evoformer.blocks[0])
    exact = run_block(block, inputs, masks, grad=False)
    fast.install(block)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run_block(block, inputs, masks, grad=False)
        gradients = run_block(block, inputs, masks, grad=True)
    for name in exact:
        assert error(ours[name], exact[name]) < 2e-2
    assert all(torch.isfinite(g).all() for g in gradients.values())


# --- choosing -------------------------------------------------------------------------------------


def test_installing_and_removing_leaves_the_model_as_it_was(tiny: OpenFoldBackbone) -> None:
    classes = [type(m) for m in tiny.modules()]
    keys = list(tiny.state_dict())
    tiny.set_kernels("auto")
    assert tiny.kernels == "fast"
    assert [type(m) for m in tiny.modules()] != classes
    assert [type(m).__name__ for m in tiny.modules()] == [c.__name__ for c in classes]
    assert list(tiny.state_dict()) == keys
    assert type(copy.deepcopy(tiny).model) is type(tiny.model)
    tiny.set_kernels("stock")
    assert [type(m) for m in tiny.modules()] == classes


def test_the_environment_decides_what_auto_is(
    tiny: OpenFoldBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLFUN_KERNELS", "stock")
    tiny.set_kernels("auto")
    assert tiny.kernels == "stock"


def test_kernels_that_differ_are_not_used(
    tiny: OpenFoldBackbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    update = fast._TriangleMultiplication._update
    monkeypatch.setattr(
        fast._TriangleMultiplication, "_update", lambda *args: update(*args) * 1.001
    )
    with caplog.at_level(logging.WARNING):
        tiny.set_kernels("auto")
    assert tiny.kernels == "stock"
    assert "The fast kernels differ from openfold's by " in caplog.text
    assert "openfold's own code runs." in caplog.text
    with pytest.raises(ConfigError, match=r"differ from openfold's by .* Use kernels='stock'\."):
        tiny.set_kernels("fast")
    assert not any(isinstance(m, fast._Fast) for m in tiny.modules())


def test_unknown_kernels_are_named(tiny: OpenFoldBackbone) -> None:
    with pytest.raises(ConfigError, match=r"kernels.*'fsat'.*fast"):
        tiny.set_kernels("fsat")  # type: ignore[arg-type]


def test_the_self_test_goes_the_ways_of_long_proteins(
    tiny: OpenFoldBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: set[str] = set()

    def noting(function: Any, name: str) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            ran.add(name)
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(attention_module, "SMALL_BYTES", 2**19)
    for owner, name in (
        (attention_module, "_fused"),
        (attention_module, "_backward"),
        (attention_module, "_plain"),
        (fast._OuterProductMean, "_deep"),
        (fast._OuterProductMean, "_shallow"),
    ):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name), name))
    tiny.set_kernels("stock")
    assert kernel_choice.self_test(tiny.model) < kernel_choice.TOLERANCE
    assert ran == {"_fused", "_backward", "_plain", "_deep", "_shallow"}
    assert attention_module.SMALL_BYTES == 2**19
    monkeypatch.setattr(
        attention_module,
        "_backward",
        lambda *_, into, **__: [t.zero_() for t in into] and None,
    )
    assert kernel_choice.self_test(tiny.model) > kernel_choice.TOLERANCE
