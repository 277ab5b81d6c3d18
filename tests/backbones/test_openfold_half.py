"""The trunk in bfloat16 against float64, beside openfold's own code under autocast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from openfold.config import model_config
from torch import nn

from molfun.backbones.openfold import OpenFoldBackbone, fast, half
from molfun.nn import attention as attention_module
from molfun.nn import bf16, lora

LENGTH = 13
# what rounding alone moves an error by: two ways of equal precision differ by a few per cent
NO_LARGER = 1.15

fused = pytest.mark.skipif(bf16.units() is None, reason="this CPU has no units for bfloat16")

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def backbone() -> OpenFoldBackbone:
    """Blocks of the published widths; every weight counts."""
    config = model_config("model_1_ptm")
    config.model.evoformer_stack.no_blocks = 2
    config.model.extra_msa.extra_msa_stack.no_blocks = 1
    config.model.structure_module.no_blocks = 1
    found = OpenFoldBackbone(config, fill_zero_init=0.05)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 1:  # biases and norms start at 0 and 1, which hides mistakes
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found.eval()


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs take the way of large ones."""
    monkeypatch.setattr(attention_module, "SMALL_BYTES", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions of `half` that ran."""
    found: list[str] = []

    def counted(name: str) -> Any:
        inner = getattr(half, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            found.append(name)
            return inner(*args, **kwargs)

        return run

    for name in ("attend_msa", "update_pairs"):
        monkeypatch.setattr(half, name, counted(name))
    return found


def inputs_of(rows: int, *, batch: int = 1, masked: bool = False) -> tuple[Tensors, Tensors]:
    generator = torch.Generator().manual_seed(1)
    msa = torch.randn(batch, rows, LENGTH, 256, generator=generator)
    pair = torch.randn(batch, LENGTH, LENGTH, 128, generator=generator)
    mask, msa_mask = torch.ones(batch, LENGTH), torch.ones(batch, rows, LENGTH)
    if masked:
        mask[:, -3:] = 0
        mask[0, 0] = 0
        msa_mask = msa_mask * mask.unsqueeze(1)
        msa_mask[:, -1, : LENGTH // 2] = 0
    pair_mask = mask.unsqueeze(1) * mask.unsqueeze(2)
    return {"m": msa, "z": pair}, {"msa_mask": msa_mask, "pair_mask": pair_mask}


def passed(block: nn.Module, given: Tensors, masks: Tensors, **options: Any) -> Tensors:
    """Return the updates where nothing is masked, and gradients if a graph is kept."""
    inputs = {k: t.clone().requires_grad_(torch.is_grad_enabled()) for k, t in given.items()}
    msa, pair = block(**{k: t.clone() for k, t in inputs.items()}, **masks, **options)
    found = {
        "msa": (msa - inputs["m"]) * masks["msa_mask"].unsqueeze(-1),
        "pair": (pair - inputs["z"]) * masks["pair_mask"].unsqueeze(-1),
    }
    if torch.is_grad_enabled():
        generator = torch.Generator().manual_seed(2)
        total = sum(
            (t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in found.values()
        )
        weights = [p for p in block.parameters() if p.requires_grad]
        grads = torch.autograd.grad(total, [*inputs.values(), *weights], allow_unused=True)
        found |= {f"of {k}": g for k, g in zip(inputs, grads, strict=False)}
        found["of weights"] = torch.cat([g.flatten() for g in grads[2:] if g is not None])
    return {k: t.detach().double() for k, t in found.items()}


def errors(
    backbone: OpenFoldBackbone, rows: int, *, grad: bool, **options: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the relative errors of the fast classes, and of openfold's own, under autocast."""
    given, masks = inputs_of(rows, **options)
    block = backbone.model.evoformer.blocks[0]
    in_place = {} if grad else {"inplace_safe": True}
    with torch.set_grad_enabled(grad):
        fast.remove(block)
        exact = passed(
            copy.deepcopy(block).double(),
            {k: t.double() for k, t in given.items()},
            {k: t.double() for k, t in masks.items()},
            **in_place,
        )
        with torch.autocast("cpu", torch.bfloat16):
            stock = passed(block, given, masks, **in_place)
            fast.install(block)
            ours = passed(block, given, masks, **in_place)
        fast.remove(block)
    return tuple(  # type: ignore[return-value]
        {k: float((t - exact[k]).norm() / exact[k].norm()) for k, t in found.items()}
        for found in (ours, stock)
    )


@fused
@pytest.mark.parametrize("small", [False, True], ids=["whole", "tiles"])
@pytest.mark.parametrize(
    ("rows", "options"),
    [(1, {}), (3, {"masked": True, "batch": 2}), (half.SHALLOW + 1, {"masked": True})],
    ids=["one row", "masked", "deep"],
)
def test_a_block_is_as_near_to_float64_as_openfold_under_autocast(
    backbone: OpenFoldBackbone,
    rows: int,
    options: dict[str, Any],
    small: bool,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if small:
        for name, value in {"TILE": 50, "LOGIT_BYTES": 4096, "LONG": 4}.items():
            monkeypatch.setattr(half, name, value)
    with bf16.cast_once():
        ours, stock = errors(backbone, rows, grad=False, **options)
    assert calls == ["attend_msa", "update_pairs"]
    for name, error in ours.items():
        assert 1e-4 < error < NO_LARGER * stock[name], name


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("rows", [1, 3, fast.SHALLOW + 1])
def test_gradients_are_as_near_to_float64(
    backbone: OpenFoldBackbone, rows: int, adapted: bool
) -> None:
    """Sums over tiles, rows and pairs are float32."""
    backbone = copy.deepcopy(backbone)
    if adapted:
        adapt(backbone)
    ours, stock = errors(backbone, rows, grad=True, masked=rows > 1)
    assert {"of m", "of z", "of weights"} < ours.keys()
    for name, error in ours.items():
        assert 1e-4 < error < NO_LARGER * stock[name], name


def adapt(backbone: OpenFoldBackbone) -> None:
    generator = torch.Generator().manual_seed(3)
    targets = ("linear_q", "linear_k", "linear_v", "linear_o", "linear_g")
    backbone.requires_grad_(False)
    spec = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": targets}
    lora.inject(backbone, lora.LoRASpec(**spec, scope="model.evoformer.blocks"))  # type: ignore[arg-type]
    for name, parameter in backbone.named_parameters():
        if lora.is_adapter(name):
            nn.init.normal_(parameter.requires_grad_(), std=0.02, generator=generator)


@fused
def test_adapters_are_folded_into_the_weights(backbone: OpenFoldBackbone, calls: list[str]) -> None:
    backbone = copy.deepcopy(backbone)
    adapt(backbone)
    with bf16.cast_once():
        ours, stock = errors(backbone, 2, grad=False)
    assert calls
    assert all(error < NO_LARGER * stock[name] for name, error in ours.items())


@fused
def test_weights_are_cast_once_and_follow_a_change_afterwards(backbone: OpenFoldBackbone) -> None:
    block = copy.deepcopy(backbone.model.evoformer.blocks[0])
    fast.install(block)
    given, masks = inputs_of(2)
    weight = block.core.pair_transition.linear_1.weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with bf16.cast_once():
            before = passed(block, given, masks)
            weight.mul_(2)  # nobody may do that in the block
            assert torch.equal(passed(block, given, masks)["pair"], before["pair"])
        with bf16.cast_once():
            assert not torch.equal(passed(block, given, masks)["pair"], before["pair"])


@fused
@pytest.mark.parametrize("why", ["hook", "training", "option", "float32", "graph"])
def test_other_passes_are_left_alone(
    backbone: OpenFoldBackbone, calls: list[str], why: str
) -> None:
    block = copy.deepcopy(backbone.model.evoformer.blocks[0])
    fast.install(block)
    given, masks = inputs_of(2)
    seen: list[Any] = []
    if why == "hook":
        block.core.pair_transition.register_forward_hook(lambda *_: seen.append(1))
    block.train(why == "training")
    options = {"use_lma": True} if why == "option" else {}
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=why != "float32")
    with torch.set_grad_enabled(why == "graph"), mixed:
        passed(block, given, masks, **options)
    assert calls == []
    assert bool(seen) == (why == "hook")


@fused
def test_inputs_stay_as_they_are_unless_they_may_change(backbone: OpenFoldBackbone) -> None:
    block = copy.deepcopy(backbone.model.evoformer.blocks[0])
    fast.install(block)
    given, masks = inputs_of(2)
    before = {k: t.clone() for k, t in given.items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = block(**given, **masks)
        assert all(torch.equal(given[k], before[k]) for k in given)
        again = block(**given, **masks, inplace_safe=True)
        # in another order in memory
        turned = {k: t.transpose(1, 2).contiguous().transpose(1, 2) for k, t in before.items()}
        third = [block(**turned, **masks, inplace_safe=safe) for safe in (False, True)]
    for found in (again, *third):
        assert all(torch.equal(one, other) for one, other in zip(outputs, found, strict=True))


@fused
def test_one_pass_of_a_whole_trunk(backbone: OpenFoldBackbone, calls: list[str]) -> None:
    """Both stacks run in bfloat16, and single and pair stay near those of float32."""
    from molfun.protein import Protein
    from molfun.sample import Sample

    protein = Protein.from_sequence("MKTAYIAKQRQISFVKSHFSRQ", name="p")
    batch = backbone.collate([backbone.featurize(Sample(id="p", protein=protein))])
    fast.install(backbone.model)
    with torch.no_grad():
        exact = backbone(batch, outputs=("single", "pair", "structure"))
        assert calls == []
        with torch.autocast("cpu", torch.bfloat16), bf16.cast_once():
            found = backbone(batch, outputs=("single", "pair", "structure"))
    assert calls.count("attend_msa") == 2  # blocks of the main stack
    assert calls.count("update_pairs") == 3  # and of that of extra sequences
    for name in ("single", "pair"):
        a, b = getattr(found, name).float(), getattr(exact, name)
        assert 1e-4 < float((a - b).norm() / b.norm()) < 0.05, name
    fast.remove(backbone.model)


@fused
@pytest.mark.parametrize("lengths", [(9, 5), (5, 9)])
def test_long_and_short_proteins_share_weights(
    lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels at a time depend on the length, and the weights that are kept do not."""
    from openfold.model.triangular_multiplicative_update import TriangleMultiplicationOutgoing

    monkeypatch.setattr(half, "LONG", 6)
    torch.manual_seed(0)
    module = TriangleMultiplicationOutgoing(16, 2 * half.CHANNELS + 8).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    run = half._Run(bf16.CastWeights())
    with torch.no_grad():
        for n in lengths:
            pair = torch.randn(n, n, 16)
            exact = module(pair, torch.ones(n, n))
            found = pair.clone()
            run.multiply(module, found, None, outgoing=True)
            assert float((found - pair - exact).norm() / exact.norm()) < 0.02
