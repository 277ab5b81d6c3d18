"""What is changed in openfold so that it runs without CUDA, and that it changes no number."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from molfun.backbones.openfold import OpenFoldBackbone, _shims
from molfun.errors import MissingDependencyError
from molfun.training import FullFinetune, LoRAFinetune, PartialFinetune


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# Kernels


def test_attention_is_attention_with_biases():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 7, 8, generator=generator) for _ in range(3))
    mask = torch.randn(2, 1, 1, 7, generator=generator)
    pair = torch.randn(1, 4, 7, 7, generator=generator)
    logits = torch.einsum("bhqc,bhkc->bhqk", query, key) + mask + pair
    expected = torch.einsum("bhqk,bhkc->bhqc", logits.softmax(-1), value)
    result = _shims.attention_core(query, key, value, mask, pair)
    assert torch.allclose(result, expected, atol=1e-6)
    with_none = _shims.attention_core(query, key, value, mask + pair, None)
    assert torch.allclose(with_none, expected, atol=1e-6)


def test_attention_has_gradients_for_every_input():
    inputs = [torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_shims.attention_core, (*inputs, bias))


def test_softmax_works_in_place():
    logits = torch.randn(3, 5)
    expected = logits.softmax(-1)
    address = logits.data_ptr()
    assert _shims.softmax_(logits, 3, 5) is None
    assert logits.data_ptr() == address
    assert torch.equal(logits, expected)


def test_openfold_uses_them():
    OpenFoldBackbone("tiny")
    from openfold.model import primitives, structure_module

    assert primitives.attention_core is _shims.attention_core
    assert structure_module.attn_core_inplace_cuda.forward_ is _shims.softmax_


# Checkpointing of activations


def gradients(model, samples, *, checkpointing: bool) -> dict[str, torch.Tensor]:
    model.backbone.checkpointing = checkpointing
    model.zero_grad()
    output = model(samples)["prediction"]
    output.sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "strategy",
    [LoRAFinetune(rank=2), PartialFinetune(unfreeze_last_n=1), FullFinetune()],
    ids=lambda s: s.name,
)
def test_checkpointing_changes_no_gradient(tiny_model, samples, strategy):
    model = tiny_model()
    strategy.setup(model)
    given = samples(2)
    plain = gradients(model, given, checkpointing=False)
    assert model.backbone.model.evoformer.blocks_per_ckpt is None
    recomputed = gradients(model, given, checkpointing=True)
    assert model.backbone.model.evoformer.blocks_per_ckpt == 1
    assert plain.keys() == recomputed.keys()
    assert any(not name.startswith("head.") for name in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, recomputed[name], rtol=1e-4, atol=1e-7), name


def test_without_a_graph_nothing_is_checkpointed(tiny_model, samples):
    model = tiny_model()
    model.predict(samples(1))
    assert model.backbone.model.evoformer.blocks_per_ckpt is None


# Half precision


@pytest.mark.parametrize(
    ("precision", "dtype"), [("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)]
)
def test_a_single_sequence_stays_finite_in_half_precision(samples, precision, dtype):
    backbone = OpenFoldBackbone("tiny", fill_zero_init=0.1)
    backbone.set_precision(precision)
    # no alignment and no template: every key of these rows is masked
    batch = backbone.collate([backbone.featurize(s) for s in samples(2)])
    assert batch["extra_msa_mask"].sum() == batch["template_mask"].sum() == 0
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        half = backbone(batch, outputs=("single", "pair", "structure"))
    assert torch.isfinite(half.single).all()
    assert torch.isfinite(half.pair).all()
    assert all(torch.isfinite(value).all() for value in half.structure.values())


def test_float16_needs_its_own_limits(samples):
    backbone = OpenFoldBackbone("tiny", fill_zero_init=0.1)
    batch = backbone.collate([backbone.featurize(s) for s in samples(1)])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert not torch.isfinite(backbone(batch, outputs=("pair",)).pair).all()


def test_other_precisions_put_the_limits_back(samples):
    backbone = OpenFoldBackbone("tiny", fill_zero_init=0.1)
    row = backbone.model.evoformer.blocks[0].msa_att_row
    before = {n: (getattr(m, "inf", 0), getattr(m, "eps", 0)) for n, m in backbone.named_modules()}
    backbone.set_precision("16-mixed")
    backbone.set_precision("16-mixed")
    assert row.inf == 1e4
    assert row.layer_norm_m.eps == before["model.evoformer.blocks.0.msa_att_row.layer_norm_m"][1]
    backbone.set_precision("32-true")
    after = {n: (getattr(m, "inf", 0), getattr(m, "eps", 0)) for n, m in backbone.named_modules()}
    assert after == before


# Imports


def test_importing_molfun_imports_nothing_heavy():
    output = run_python(
        "import sys, molfun, molfun.models, molfun.training, molfun.data, molfun.backbones\n"
        "import molfun.heads, molfun.tasks, molfun.backbones.openfold\n"
        "print([m for m in ('torch', 'openfold', 'peft', 'numpy', 'pandas') if m in sys.modules])"
    )
    assert output == "[]\n"


def test_numpy_is_as_before_when_openfold_is_there():
    output = run_python(
        "import numpy\n"
        "before = set(vars(numpy))\n"
        "from molfun.backbones.openfold import _shims\n"
        "_shims.prepare()\n"
        "import openfold.data.templates, openfold.model.model\n"
        "print('object' in vars(numpy), 'object' in before)"
    )
    assert output == "False False\n"


def test_a_missing_openfold_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(_shims.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"not installed\. Install it: molfun install openfold"
    ):
        _shims.prepare.__wrapped__()


def test_a_missing_dependency_of_openfold_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tree", None)
    with pytest.raises(MissingDependencyError, match=r"tree is needed.*pip install ml-collections"):
        _shims.prepare.__wrapped__()
