"""The published architecture at full size: 48 blocks, 93 million parameters.

The weights are random unless MOLFUN_WEIGHTS names a file of pretrained ones.
"""

from __future__ import annotations

import os

import pytest
import torch

from molfun.backbones.openfold._versions import canonical_key
from molfun.models.structure import MolfunStructureModel
from molfun.sample import SampleBatch
from molfun.training import HeadOnlyFinetune, LoRAFinetune

pytestmark = pytest.mark.slow

N_PARAMETERS = 93_237_338
N_WEIGHTS = 5046
LENGTH = 16


def build(**settings) -> MolfunStructureModel:
    arguments = {"config": "model_1_ptm", "device": "cpu", "head": "affinity"}
    return MolfunStructureModel("openfold", **(arguments | settings))


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    """The whole model; tests leave its weights as they are, adapters apart."""
    weights = os.environ.get("MOLFUN_WEIGHTS")
    random_start = {"fill_zero_init": 0.01}
    return build(weights=weights, backbone_config={} if weights else random_start)


@pytest.fixture(scope="module")
def sample(samples):
    return samples(1, lengths=(LENGTH,))[0]


@pytest.fixture(scope="module")
def untouched(model, sample):
    """Outputs before any test has trained."""
    return model.predict(sample, outputs=("single", "pair"))["trunk"]


def test_it_has_the_published_number_of_parameters(model):
    assert sum(p.numel() for p in model.backbone.parameters()) == N_PARAMETERS
    assert len(model.backbone.model.state_dict()) == N_WEIGHTS
    assert len(model.backbone.blocks()) == 48
    assert "OpenFold" in model.backbone.display_name
    assert "48 blocks" in model.summary()


def test_names_of_both_layouts_meet_one_to_one(model):
    names = list(model.backbone.model.state_dict())
    canonical = [canonical_key(name) for name in names]
    assert len(set(canonical)) == N_WEIGHTS
    assert [canonical_key(name) for name in canonical] == canonical
    # 0.0.1 and 2.x share 1169 names
    assert sum(a == b for a, b in zip(names, canonical, strict=True)) in (1169, N_WEIGHTS)


def test_shapes_are_those_of_the_paper(untouched):
    assert untouched.single.shape == (1, LENGTH, 384)
    assert untouched.pair.shape == (1, LENGTH, LENGTH, 128)
    assert torch.isfinite(untouched.single).all()
    assert torch.isfinite(untouched.pair).all()


def test_it_folds(model, sample):
    structure = model.predict(sample, outputs=("structure",))["trunk"].structure
    assert structure["positions"].shape == (1, LENGTH, 37, 3)
    assert structure["plddt"].shape == (1, LENGTH)
    assert bool(((structure["plddt"] >= 0) & (structure["plddt"] <= 100)).all())
    assert 0 < float(structure["ptm"]) <= 1


@pytest.mark.parametrize(
    ("rename", "wrap"),
    [
        (lambda key: key, lambda weights: {"ema": {"params": weights}}),
        (lambda key: f"model.{canonical_key(key)}", lambda weights: {"state_dict": weights}),
    ],
    ids=["1.x under ema.params", "2.x under state_dict"],
)
def test_weight_files_of_both_layouts_give_the_same_bits(
    model, untouched, sample, tmp_path, rename, wrap
):
    base = model.backbone.base_state_dict()
    weights = {rename(name.removeprefix("model.")): tensor for name, tensor in base.items()}
    path = tmp_path / "finetuning_ptm_2.pt"
    torch.save(wrap(weights), path)
    loaded = build(weights=path, seed=1)
    assert loaded.base_fingerprint == model.base_fingerprint
    again = loaded.predict(sample, outputs=("single", "pair"))["trunk"]
    assert torch.equal(again.single, untouched.single)
    assert torch.equal(again.pair, untouched.pair)


def test_head_only_runs_the_trunk_once_a_sample(model, samples):
    given = samples(2, lengths=(LENGTH,))
    runs = []
    hook = model.backbone.model.evoformer.register_forward_hook(lambda *_: runs.append(1))
    try:
        history = model.fit(
            [SampleBatch([s]) for s in given], strategy=HeadOnlyFinetune(lr=1e-3), epochs=3
        )
    finally:
        hook.remove()
    assert len(history) == 3
    assert len(runs) == len(given)
    assert model.backbone.fingerprint() == model.base_fingerprint


def test_a_lora_step_changes_adapters_and_head_only(model, sample, untouched):
    n_head = sum(p.numel() for p in model.head.parameters())
    strategy = LoRAFinetune(rank=8, lr_lora=1e-3)
    strategy.setup(model)
    assert model.count_parameters(trainable=True) - n_head == 1_179_648
    injected = model.predict(sample)["trunk"].single
    assert torch.equal(injected, untouched.single)
    head = model.head.hidden.weight.detach().clone()
    model.fit([SampleBatch([sample])], strategy=strategy, max_steps=1)
    assert model.backbone.fingerprint() == model.base_fingerprint
    assert not torch.equal(model.head.hidden.weight, head)
    # B starts at zero, so what is no longer zero has been trained
    trained = [bool(p.any()) for name, p in model.backbone.named_parameters() if ".lora_B." in name]
    assert len(trained) == 384
    # with one sequence, attention over a column has nothing to choose from (a query in each of 48
    # blocks); the triangle attentions of the last block come after `single` has been read off
    assert sum(trained) == 384 - 48 - 4
    assert not torch.equal(model.predict(sample)["trunk"].single, untouched.single)
