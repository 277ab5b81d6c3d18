"""OpenFold's frozen blocks run once a sample, whatever trains behind them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from molfun import LoRAFinetune, MolfunStructureModel, PartialFinetune
from molfun.backbones.openfold import OpenFoldBackbone
from molfun.errors import ConfigError, DataError
from molfun.sample import Sample, SampleBatch
from molfun.training import CacheConfig, Callback, FinetuneStrategy, History

ModelFactory = Callable[..., MolfunStructureModel]
BatchFactory = Callable[..., list[SampleBatch]]
PARTIAL = PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2, scheduler="constant")
LORA = LoRAFinetune(rank=2, adapt_last_n=1, lr_lora=1e-2, scheduler="constant")


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes with which the frozen blocks ran."""
    ran: list[int] = []
    run = OpenFoldBackbone.run_prefix

    def counted(self: OpenFoldBackbone, batch: Any, block: int) -> Any:
        ran.append(len(batch["aatype"]))
        return run(self, batch, block)

    monkeypatch.setattr(OpenFoldBackbone, "run_prefix", counted)
    return ran


def fit(
    model: MolfunStructureModel,
    batches: list[SampleBatch],
    strategy: FinetuneStrategy = PARTIAL,
    **options: Any,
) -> History:
    return model.fit(batches, batches[:1], strategy=strategy, epochs=3, **options)


def same(model: MolfunStructureModel, other: MolfunStructureModel) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for (_, a), b in pairs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernels", ["stock", "fast"])
@pytest.mark.parametrize("strategy", [PARTIAL, LORA], ids=["partial", "lora"])
def test_the_cache_gives_the_same_bits(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    prefixes: list[int],
    tmp_path: Path,
    strategy: FinetuneStrategy,
    kernels: str,
    precision: str,
) -> None:
    models = {mode: tiny_model(kernels=kernels) for mode in ("off", "memory", "disk")}
    histories = {
        mode: fit(model, batches(4), strategy, cache=mode, cache_dir=tmp_path, precision=precision)
        for mode, model in models.items()
    }
    # off: 4 to train and 1 to validate in each of 3 epochs; else each sample once
    assert prefixes == [1] * (15 + 4 + 4)
    for mode in ("memory", "disk"):
        assert list(histories[mode]) == list(histories["off"])
        assert same(models[mode], models["off"])
        assert "ran 4 times instead of 15" in histories[mode].cache_report
    assert models["off"].backbone.kernels == kernels


def test_samples_of_different_lengths_are_padded_from_the_cache(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    cached, plain = tiny_model(), tiny_model()
    with_cache = fit(cached, batches(6, batch_size=3), cache="memory")
    without = fit(plain, batches(6, batch_size=3), cache="off")
    for row, other in zip(with_cache, without, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


def test_only_the_last_blocks_get_adapters_and_checkpoints_know(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    model = tiny_model()
    fit(model, batches(2), LORA)
    adapted = {n.split(".")[3] for n, _ in model.backbone.named_parameters() if "lora_A" in n}
    assert adapted == {"1"}
    model.save(tmp_path / "checkpoint")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert torch.equal(
        again.predict(batches(2)[0])["prediction"], model.predict(batches(2)[0])["prediction"]
    )


def test_more_blocks_than_there_are_is_refused(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(tiny_model(), batches(2), replace(LORA, adapt_last_n=3))
    assert str(caught.value) == (
        "adapt_last_n=3, but OpenFold has 2 blocks. Use at most 2, or leave it out to adapt all."
    )
    with pytest.raises(ConfigError, match=r"adapt_last_n must be at least 1, got 0\."):
        LoRAFinetune(adapt_last_n=0)


def test_recycling_passes_through_what_trains(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    prefixes: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model(backbone_config={"fill_zero_init": 0.1, "recycling": 1})
    with caplog.at_level(logging.WARNING):
        fit(model, batches(2), cache="memory")
    assert not prefixes
    assert (
        "cache='memory' keeps nothing in this run: what the head reads, or recycling, passes "
        "through what trains, or the number of passes is drawn."
    ) in caplog.messages


def test_features_with_recycling_are_refused_where_blocks_are_split_off(
    tiny_model: ModelFactory, samples: Callable[..., list[Sample]]
) -> None:
    recycled = tiny_model(backbone_config={"fill_zero_init": 0.1, "recycling": 2}).backbone
    sample = samples(1)[0]
    features = {k: v.numpy() for k, v in recycled.featurize(sample).items()}
    given = [SampleBatch([Sample(id="p", features=features, target=1.0)])]
    with pytest.raises(DataError) as caught:
        fit(tiny_model(), given, cache="off")
    assert str(caught.value) == (
        "The features were made for 2 recycling passes, which go through the blocks that train, so "
        "that these cannot be split off. Make them without, or pass "
        "backbone_config={'recycling': 2}."
    )
    whole = tiny_model(backbone_config={"fill_zero_init": 0.1, "recycling": 2})
    assert len(fit(whole, given, cache="off")) == 3


def test_what_changes_the_prefix_never_hits(
    tiny_model: ModelFactory,
    samples: Callable[..., list[Sample]],
    prefixes: list[int],
    tmp_path: Path,
) -> None:
    plain = samples(1, lengths=(12,))[0]
    assert plain.protein is not None

    def ran(
        sample: Sample = plain, strategy: FinetuneStrategy = PARTIAL, **settings: Any
    ) -> list[int]:
        settings.setdefault("kernels", "fast")
        prefixes.clear()
        batch = [SampleBatch([sample])]
        options: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path, "epochs": 1}
        tiny_model(**settings).fit(batch, strategy=strategy, **options)
        return list(prefixes)

    assert ran() == [1]
    assert ran() == []
    assert ran(replace(plain, target=3.0)) == [], "the label is no input"
    assert ran(strategy=LORA) == [], "the same blocks are frozen"
    assert ran(replace(plain, protein=plain.protein.crop(8))) == [1], "another crop"
    assert ran(seed=1) == [1], "other weights"
    assert ran(kernels="stock") == [1], "another order of sums"
    changed = {"fill_zero_init": 0.1, "max_msa_clusters": 4}
    assert ran(backbone_config=changed) == [1], "other features"
    assert ran() == [], "the first entry is still there"


def test_weights_behind_the_boundary_do_not_matter(
    tiny_model: ModelFactory, batches: BatchFactory, prefixes: list[int], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path}
    fit(tiny_model(), batches(2), **options)
    prefixes.clear()
    model = tiny_model()
    with torch.no_grad():
        next(model.backbone.blocks()[1].parameters()).view(-1)[0] += 1
    fit(model, batches(2), **options)
    assert not prefixes
    with torch.no_grad():
        next(model.backbone.blocks()[0].parameters()).view(-1)[0] += 1
    fit(model, batches(2), **options)
    assert prefixes == [1, 1]


def test_half_the_bytes_in_bfloat16_and_exact_in_itself(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    def run(folder: str, precision: Any) -> tuple[History, int]:
        config = CacheConfig(mode="disk", directory=tmp_path / folder, precision=precision)
        history = fit(tiny_model(), batches(2), cache=config)
        return history, sum(f.stat().st_size for f in (tmp_path / folder).rglob("*.safetensors"))

    exact, size = run("a", "float32")
    rounded, half = run("b", "bfloat16")
    again, _ = run("b", "bfloat16")
    assert 0.45 < half / size < 0.65
    # the second run reads in its first epoch what the first one computed
    assert list(again) == list(rounded)
    assert list(rounded) != list(exact)
    assert rounded[0]["train_loss"] == pytest.approx(exact[0]["train_loss"], rel=0.05)


def test_the_frozen_blocks_are_in_eval_mode_and_build_no_graph(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model = tiny_model()
    seen: list[tuple[bool, bool]] = []
    first, last = model.backbone.blocks()
    first.register_forward_hook(lambda m, *_: seen.append((m.training, torch.is_grad_enabled())))
    last.register_forward_hook(lambda m, *_: seen.append((m.training, torch.is_grad_enabled())))
    model.fit(batches(1), strategy=PARTIAL, epochs=1, cache="off")
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("kernels", ["stock", "fast"])
def test_a_run_in_bfloat16_is_near_float32_and_resumes_bit_by_bit(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path, kernels: str
) -> None:
    class Stop(Callback):
        def on_epoch_end(self, row: Any, improved: bool) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    strategy = LoRAFinetune(rank=2, lr_lora=1e-4, lr_head=1e-4, scheduler="constant")
    options: dict[str, Any] = {"precision": "bf16"}
    whole = tiny_model(kernels=kernels)
    history = fit(whole, batches(4), strategy, **options)
    exact = fit(tiny_model(kernels=kernels), batches(4), strategy, precision="fp32")
    losses = [row["train_loss"] for row in history], [row["train_loss"] for row in exact]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model(kernels=kernels), batches(4), strategy, output_dir=tmp_path,
            callbacks=[Stop()], **options)  # fmt: skip
    resumed = tiny_model(kernels=kernels)
    again = fit(resumed, batches(4), strategy, output_dir=tmp_path, resume=True, **options)
    assert repr(list(again)) == repr(list(history))  # NaN, of one sample, is not equal to itself
    assert same(resumed, whole)
    one, other = (model.predict(batches(2)[0])["prediction"] for model in (whole, resumed))
    assert torch.equal(one, other)
    # the precision of the model is that of its training
    assert whole.precision == "bf16-mixed"
