"""Models of several chains: each distinct chain runs once, and order counts where it should."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from molfun import (
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    SequenceDataset,
)
from molfun.backbones.language import LanguageBackbone
from molfun.data import SequencePairDataset
from molfun.errors import ConfigError, DataError
from molfun.models import Ensemble
from molfun.protein import Protein
from molfun.sample import Sample
from molfun.training.chains import ChainMemory
from molfun.training.inputs import Inputs
from molfun.training.supervised import SupervisedRunner
from molfun.trunk import TrunkOutput

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def proteins(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(LETTERS, 5 + i % 6)) for i in range(n)]


def pairs(n: int = 6, seed: int = 0) -> SequencePairDataset:
    chains = proteins(n, seed)
    rows = list(itertools.combinations(chains, 2))
    rng = np.random.default_rng(seed)
    return SequencePairDataset.from_list([(row, float(rng.normal())) for row in rows])


def model(head: str = "pair_mlp", **settings: Any) -> MolfunStructureModel:
    torch.manual_seed(0)
    return MolfunStructureModel("esm2_tiny", head=head, device="cpu", **settings)


def swapped(data: SequencePairDataset) -> SequencePairDataset:
    return SequencePairDataset.from_list(
        [list(chains[::-1]) for chains in data.sequences()], ids=data.ids
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of sequences in each pass of the backbone."""
    found: list[int] = []
    run = LanguageBackbone.forward

    def counted(self: LanguageBackbone, batch: Any, **options: Any) -> Any:
        found.append(len(batch["shape"]))
        return run(self, batch, **options)

    monkeypatch.setattr(LanguageBackbone, "forward", counted)
    return found


HEADS = {
    "pair_mlp": {},
    "pair_mlp with attention": {"pooling": "attention"},
    "cross_attention": {"width": 8, "n_heads": 2},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("strategy", [HeadOnlyFinetune(lr=1e-2), LoRAFinetune(rank=2)])
def test_the_order_of_chains_changes_nothing(name: str, strategy: Any) -> None:
    tuned = model(name.split(maxsplit=1)[0], head_config=HEADS[name])
    data = pairs()
    tuned.fit(data, data, strategy=strategy, epochs=2)
    found = tuned.predict(data)["prediction"]
    assert float(found.std()) > 1e-4
    torch.testing.assert_close(tuned.predict(swapped(data))["prediction"], found, rtol=0, atol=1e-6)


def test_pairs_with_roles_are_directed() -> None:
    directed = model(head_config={"symmetric": False})
    data = pairs()
    directed.fit(data, data, strategy=HeadOnlyFinetune(lr=1e-2), epochs=2)
    found = directed.predict(data)["prediction"]
    assert float((directed.predict(swapped(data))["prediction"] - found).abs().max()) > 1e-3


def test_a_frozen_backbone_runs_once_per_distinct_chain(runs: list[int]) -> None:
    data = pairs(7)
    assert len(data) == 21
    tuned = model()
    tuned.fit(data, data, strategy=HeadOnlyFinetune(), epochs=4)
    assert sum(runs) == 7


def test_a_batch_runs_each_distinct_chain_once(runs: list[int]) -> None:
    data = pairs(5)
    tuned = model()
    loader = DataLoader(data, batch_size=10, collate_fn=data.collate_fn)
    tuned.fit(loader, strategy=FullFinetune(), epochs=3)
    assert runs[:3] == [5, 5, 5]
    assert max(runs) <= 5


@pytest.mark.parametrize("head", ["pair_mlp", "cross_attention"])
def test_gradients_are_those_of_chains_that_run_for_each_sample(head: str) -> None:
    data = pairs(4)
    tuned = model(head, head_config={"dropout": 0.0})
    chains = [Sample(id=c, sequence=c) for sample in data.sequences() for c in sample]
    trunk = tuned.backbone(
        tuned.backbone.collate([tuned.backbone.featurize(c) for c in chains]),
        outputs=tuned.head.needs,
    )
    alone = torch.stack([
        tuned.head(rows_of(trunk, [2 * i, 2 * i + 1]))["prediction"].squeeze()
        for i in range(len(data))
    ])  # fmt: skip
    targets = torch.tensor(data.targets).float()
    expected = torch.autograd.grad((alone - targets).square().mean(), weights(tuned))
    both = SupervisedRunner(tuned.backbone, tuned.heads, device=torch.device("cpu"))
    outputs = both.outputs(Inputs.of(list(data)))
    torch.testing.assert_close(outputs["prediction"], alone)
    found = torch.autograd.grad((outputs["prediction"] - targets).square().mean(), weights(tuned))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def rows_of(trunk: Any, rows: list[int]) -> Any:
    some = TrunkOutput.from_tensors({n: t[rows] for n, t in trunk.tensors().items()})
    return replace(some, chains=torch.arange(len(rows))[None])


def weights(tuned: MolfunStructureModel) -> list[torch.Tensor]:
    of_blocks = [p for n, p in tuned.backbone.named_parameters() if ".layers." in n]
    return [*of_blocks, *(p for n, p in tuned.head.named_parameters())]


@pytest.mark.parametrize(
    "strategy",
    [HeadOnlyFinetune(lr=1e-2), PartialFinetune(unfreeze_last_n=1), LoRAFinetune(rank=2)],
)
def test_a_checkpoint_predicts_the_same_and_knows_its_chains(strategy: Any, tmp_path: Path) -> None:
    data = pairs()
    tuned = model()
    tuned.fit(data, data, strategy=strategy, epochs=1)
    tuned.save(tmp_path / "checkpoint")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    expected = tuned.predict(data)
    assert torch.equal(again.predict(data)["prediction"], expected["prediction"])
    with pytest.raises(
        DataError, match=r"has 1 chain, and the head reads 2. Write the chains as A:"
    ):
        again.predict(["MKVLA"])


def test_sets_of_any_number_of_chains() -> None:
    a, b, c = proteins(3)
    sets = SequencePairDataset.from_list([((a, b), 1.0), ((a, b, c), 2.0), ((c, a), 0.5)])
    tuned = model(head_config={"n_chains": None})
    tuned.fit(sets, sets, strategy=HeadOnlyFinetune(lr=1e-2), epochs=2)
    found = tuned.predict([f"{a}:{b}:{c}", f"{c}:{a}:{b}", a])["prediction"]
    assert float(found[0] - found[1]) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(found).all()
    with pytest.raises(DataError, match=r"has 3 chains, and the head reads 2. Set n_chains"):
        model().fit(sets, strategy=HeadOnlyFinetune(), epochs=1)


def test_a_head_of_whole_samples_refuses_several_chains() -> None:
    data = pairs(3)
    with pytest.raises(DataError, match=r"has 2 chains, and what reads it takes one: give single"):
        model("mlp").fit(data, strategy=HeadOnlyFinetune(), epochs=1)
    with pytest.raises(DataError, match="has 2 chains, and what reads it takes one"):
        model().embed(["MKV:ACD"])


def test_heads_of_both_kinds_do_not_go_together() -> None:
    heads = {"kd": {"head": "pair_mlp"}, "tm": {"head": "mlp"}}
    with pytest.raises(ConfigError, match=r"read either whole samples \(mlp\) or their chains"):
        MolfunStructureModel("esm2_tiny", heads=heads, device="cpu").fit(
            SequencePairDataset.from_list([(("MKV", "ACD"), {"kd": 1.0, "tm": 2.0})] * 2),
            strategy=HeadOnlyFinetune(),
            epochs=1,
        )


def test_two_heads_on_pairs() -> None:
    heads = {"kd": {"head": "pair_mlp"}, "kon": {"head": "cross_attention"}}
    rows = [(("MKV", "ACD"), {"kd": 1.0}), (("MKV", "GGS"), {"kd": 2.0, "kon": 0.5})]
    both = MolfunStructureModel("esm2_tiny", heads=heads, device="cpu")
    history = both.fit(
        SequencePairDataset.from_list(rows * 2), strategy=LoRAFinetune(rank=2), epochs=1
    )
    assert np.isfinite(history[-1]["train_loss"])


def test_wrong_arguments_of_heads() -> None:
    for settings, message in (
        ({"n_chains": None, "symmetric": False}, "symmetric=False needs n_chains"),
        ({"n_chains": 0}, "n_chains must be at least 1, got 0"),
        ({"pooling": "max"}, "Unknown pooling 'max'"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(head_config=settings)
    with pytest.raises(ConfigError, match="width must be a multiple of n_heads, got 10 and 4"):
        model("cross_attention", head_config={"width": 10})
    with pytest.raises(ConfigError, match="one label per sample, got the level 'residue'"):
        model(task_config={"level": "residue"})


def test_chains_of_plain_sequences_share_the_cache_of_pairs(
    runs: list[int], tmp_path: Path
) -> None:
    """Sequences that ran alone do not run again in pairs."""
    chains = proteins(4)
    single = SequenceDataset.from_list([(c, float(i)) for i, c in enumerate(chains)])
    cache: Any = {"cache": "disk", "cache_dir": tmp_path / "cache"}
    model("linear").fit(single, strategy=HeadOnlyFinetune(), epochs=1, **cache)
    assert sum(runs) == 4
    model().fit(pairs(4), strategy=HeadOnlyFinetune(), epochs=1, **cache)
    assert sum(runs) == 4


def test_a_pass_over_the_data_runs_each_distinct_chain_once(
    runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pairs(6)
    tuned = model("cross_attention")
    for head in (tuned, model()):
        runs.clear()
        found = head.predict(data)["prediction"]
        assert (len(data), sum(runs)) == (15, 6)
        with monkeypatch.context() as patch:
            small = functools.partial(ChainMemory, budget=700)
            patch.setattr("molfun.training.forward.ChainMemory", small)
            again = head.predict(data)["prediction"]
        torch.testing.assert_close(again, found, rtol=0, atol=1e-5)


def test_validation_sees_the_weights_of_its_epoch() -> None:
    data = pairs(5)
    tuned = model()
    history = tuned.fit(data, data, strategy=FullFinetune(), epochs=3)
    assert history[-1]["val_loss"] != history[0]["val_loss"]
    scores = tuned.evaluate(data)
    assert scores["rmse"] == pytest.approx(history.best["val/rmse"], rel=1e-5)


def test_chains_of_structures_are_read_apart() -> None:
    complexes = [Protein.from_chains(["MKVLA", "ACD"], name=f"c{i}") for i in range(4)]
    samples = [Sample(id=p.name, protein=p, target=float(i)) for i, p in enumerate(complexes)]
    tuned = model()
    tuned.fit(samples, strategy=HeadOnlyFinetune(), epochs=1)
    found = tuned.predict([samples[0]])["prediction"]
    text = tuned.predict(["MKVLA:ACD"])["prediction"]
    torch.testing.assert_close(found, text, rtol=0, atol=1e-6)


def test_an_ensemble_runs_each_distinct_chain_once_per_model(runs: list[int]) -> None:
    data = pairs(6)
    both = Ensemble([model(seed=0), model(seed=1)])
    both.predict(DataLoader(data, batch_size=4, collate_fn=data.collate_fn))
    assert sum(runs) == 12


def test_the_other_order_of_a_pair_is_known(caplog: pytest.LogCaptureFixture) -> None:
    data = pairs(4)
    model().fit(data, swapped(data), strategy=HeadOnlyFinetune(), epochs=1)
    assert "6 of 6 validation samples are also in the training set" in caplog.text


def test_what_reads_whole_samples_says_so_of_a_pair_model() -> None:
    with pytest.raises(DataError, match=r"what reads it takes one: give single sequences\.$"):
        model().embed(["MKV:ACD"])


def test_a_batch_of_samples_is_predicted_by_chain_too(runs: list[int]) -> None:
    data = pairs(4)
    tuned = model()
    expected = tuned.predict(data)["prediction"]
    runs.clear()
    found = tuned.predict(list(data), outputs=("mean",))
    torch.testing.assert_close(found["prediction"], expected, rtol=0, atol=1e-6)
    assert runs == [4]
    trunk = found["trunk"]
    assert trunk.mean[trunk.chains].shape == (6, 2, tuned.backbone.single_dim)
