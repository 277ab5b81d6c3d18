"""Encoders of time series against plain loops, and what their weights carry along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_series

from molfun import FullFinetune, MolfunStructureModel
from molfun.backbones.base import Layer
from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.backbones.timeseries.encoders.gru_d import DecayingGRU, last_observed
from molfun.data import TimeSeriesDataset
from molfun.errors import CheckpointError, ConfigError, DataError, RunError
from molfun.sample import Sample, SampleBatch

SMALL: dict[str, Any] = {"name": "transformer", "d_input": 3, "d_model": 8, "n_heads": 2}
STEP = FullFinetune(lr=1e-3)


def batches(n: int = 6) -> list[SampleBatch]:
    return [SampleBatch(build_series(n))]


def test_gru_d_is_che_s_recurrence() -> None:
    """Equations 3 to 10 of Che et al. 2018, a value at a time."""
    torch.manual_seed(0)
    backbone = TimeSeriesBackbone({"name": "gru_d", "d_input": 2, "d_model": 4}).eval()
    encoder: Any = backbone.encoder
    with torch.no_grad():
        encoder.embedding.rate.copy_(torch.tensor([0.3, 0.1]))
        encoder.embedding.offset.copy_(torch.tensor([0.05, -0.2]))
    x, mask = torch.randn(1, 9, 2), torch.rand(1, 9, 2) > 0.4
    layer: DecayingGRU = encoder.layers[0]
    wx, bx = layer.input_gates.weight.chunk(3), layer.input_gates.bias.chunk(3)
    wh, bh = layer.state_gates.weight.chunk(3), layer.state_gates.bias.chunk(3)
    state = torch.zeros(4)
    last, seen = torch.zeros(2), [-1, -1]
    expected = []
    for t in range(9):
        gap = torch.tensor([float(t if s < 0 else t - s) for s in seen])
        rate = encoder.embedding.rate * gap + encoder.embedding.offset
        fade = torch.exp(-torch.clamp(rate, min=0))
        m = mask[0, t].float()
        filled = m * x[0, t] + (1 - m) * fade * last
        decay = torch.exp(-torch.clamp(layer.state_decay.weight @ gap + layer.state_decay.bias, 0))
        state = decay * state
        inputs = torch.cat([filled, m])
        r = torch.sigmoid(wx[0] @ inputs + bx[0] + wh[0] @ state + bh[0])
        z = torch.sigmoid(wx[1] @ inputs + bx[1] + wh[1] @ state + bh[1])
        n = torch.tanh(wx[2] @ inputs + bx[2] + r * (wh[2] @ state + bh[2]))
        state = (1 - z) * n + z * state
        expected.append(state)
        for i in range(2):
            if mask[0, t, i]:
                last[i], seen[i] = x[0, t, i], t
    with torch.no_grad():
        given = encoder(x, mask)[0]
    assert torch.allclose(given, torch.stack(expected), atol=1e-6)


def test_gru_d_runs_where_gates_are_in_half_precision() -> None:
    layer = DecayingGRU(2, 4)
    inputs = torch.randn(1, 5, 6)
    layer.input_gates, layer.state_gates = (
        torch.nn.Sequential(part, _ToBfloat16()) for part in (layer.input_gates, layer.state_gates)
    )
    assert layer(inputs).dtype == torch.float32


class _ToBfloat16(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16)


def test_gaps_count_steps_since_the_last_value() -> None:
    mask = torch.tensor([[[False], [True], [False], [False], [True]]])
    x = torch.arange(5.0).reshape(1, 5, 1)
    last, gaps = last_observed(x, mask)
    assert gaps.flatten().tolist() == [0, 1, 1, 2, 3]
    assert last.flatten().tolist() == [0, 0, 1, 1, 1]


def test_what_follows_the_layers_goes_with_the_last() -> None:
    backbone = TimeSeriesBackbone(SMALL)
    backbone.encoder.add_module("tail", torch.nn.Linear(8, 8))
    assert backbone.layer_of("encoder.tail.weight") == Layer("block", 1)
    assert backbone.layer_of("encoder.embedding.values.weight") == Layer("embedder")


@pytest.mark.parametrize("name", ["transformer", "gru_d", "linear"])
def test_what_was_not_observed_does_not_count(name: str) -> None:
    backbone = TimeSeriesBackbone({"name": name, "d_input": 3, "d_model": 8}).eval()
    values, mask = torch.randn(2, 6, 3), torch.rand(2, 6, 3) > 0.3
    other = torch.where(mask, values, torch.full_like(values, 1e6))
    one = backbone({"timeseries": values, "mask": mask}).single
    assert torch.equal(one, backbone({"timeseries": other, "mask": mask}).single)
    absent = torch.where(mask, values, torch.full_like(values, torch.nan))
    assert torch.equal(one, backbone({"timeseries": absent}).single)


def test_no_observed_value_at_all_gives_numbers() -> None:
    for name in ("transformer", "gru_d", "linear"):
        backbone = TimeSeriesBackbone({"name": name, "d_input": 3, "d_model": 8}).eval()
        nothing = torch.zeros(1, 4, 3, dtype=torch.bool)
        assert (
            backbone({"timeseries": torch.zeros(1, 4, 3), "mask": nothing}).single.isfinite().all()
        )


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_pooling_does_not_see_padding(pooling: str) -> None:
    model = MolfunStructureModel(
        "timeseries", config={**SMALL, "cls": True}, head="mlp",
        head_config={"pooling": pooling}, device="cpu",
    )  # fmt: skip
    samples = build_series(3, lengths=(4, 12, 7))
    together = model.predict(SampleBatch(samples))["prediction"]
    alone = torch.cat([model.predict(SampleBatch([s]))["prediction"] for s in samples])
    assert torch.allclose(together, alone, atol=1e-6)


def test_the_scale_is_that_of_the_observed_values() -> None:
    """Around 300 with a deviation of 0.01, a feature that never varies, and gaps."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(5):
        values = np.stack([300 + 0.01 * rng.normal(size=20), np.full(20, 7.0)], 1)
        mask = rng.uniform(size=values.shape) > 0.3
        values[~mask] = np.nan
        samples.append(Sample(id=str(i), features={"timeseries": values.astype(np.float64)}))
    backbone = TimeSeriesBackbone({**SMALL, "d_input": 2})
    backbone.fit_inputs(samples)
    seen = np.concatenate([s.features["timeseries"] for s in samples]).astype(np.float32)
    assert backbone.input_mean.numpy() == pytest.approx(np.nanmean(seen, 0), rel=1e-6)
    assert float(backbone.input_std[0]) == pytest.approx(float(np.nanstd(seen[:, 0])), rel=1e-2)
    assert float(backbone.input_std[1]) == 1.0
    before = backbone.input_mean.clone()
    backbone.fit_inputs([samples[0]])
    assert torch.equal(backbone.input_mean, before)


@pytest.mark.parametrize("standardize", [True, False])
def test_weights_bring_settings_and_scale_along(tmp_path: Path, standardize: bool) -> None:
    model = MolfunStructureModel(
        "timeseries", config=SMALL, backbone_config={"standardize": standardize}, device="cpu"
    )
    model.pretrain(batches(), objective="mae", epochs=1, output_dir=tmp_path)
    path = tmp_path / "weights.safetensors"
    again = MolfunStructureModel("timeseries", weights=path, head="mlp", device="cpu")
    assert again.backbone.config_dict == model.backbone.config_dict
    assert again.backbone.standardize is standardize
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], tensor), name
    partly = TimeSeriesBackbone({"name": "transformer", "d_model": 8}, weights=path)
    assert partly.config.n_heads == 2
    with pytest.raises(ConfigError, match=r"but .*weights.safetensors was trained on"):
        TimeSeriesBackbone(weights=path, standardize=not standardize)
    with pytest.raises(CheckpointError, match="n_layers: 2 in the file, 3 here"):
        TimeSeriesBackbone({"name": "transformer", "n_layers": 3}, weights=path)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("strategy", ["full", "lora", "gradual", "head_only"])
def test_a_checkpoint_suffices(tmp_path: Path, pretrained: bool, strategy: str) -> None:
    weights = None
    if pretrained:
        first = MolfunStructureModel("timeseries", config=SMALL, device="cpu")
        first.pretrain(batches(), objective="mae", epochs=1, output_dir=tmp_path / "pre")
        weights = tmp_path / "pre/weights.safetensors"
    model = MolfunStructureModel(
        "timeseries", config=None if pretrained else SMALL, weights=weights, head="mlp",
        device="cpu",
    )  # fmt: skip
    model.fit(batches(), strategy=strategy, epochs=2, output_dir=tmp_path / "run")
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "run/checkpoint", device="cpu")
    expected = model.predict(batches()[0])["prediction"]
    assert torch.equal(loaded.predict(batches()[0])["prediction"], expected)


def test_batches_of_tensors_train_like_samples() -> None:
    """Dicts of timeseries, mask and label, as the guide has them."""
    samples = build_series(6)
    data = SampleBatch(samples)
    outcomes = []
    for form in ("samples", "tensors"):
        model = MolfunStructureModel(
            "timeseries", config={**SMALL, "dropout": 0.0}, head="mlp",
            head_config={"dropout": 0.0}, device="cpu",
        )  # fmt: skip
        given: Any = data
        if form == "tensors":
            given = model.backbone.collate([model.backbone.featurize(s) for s in samples])
            given["label"] = torch.tensor([s.target for s in samples])
        pre = model.pretrain([given], objective="mae", epochs=2, seed=1)
        fit = model.fit([given], strategy=STEP, epochs=2)
        outcomes.append((model.backbone.input_mean, pre[-1]["train_loss"], fit[-1]["train_loss"]))
    assert torch.allclose(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1:] == pytest.approx(outcomes[1][1:], rel=1e-5)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"timeseries": np.zeros((4, 2))}, r"shape \(4, 2\); this model takes \(time, 3\)"),
        ({"timeseries": np.zeros((0, 3))}, r"shape \(0, 3\)"),
        ({"timeseries": np.full((4, 3), np.inf)}, "infinite values"),
        ({"timeseries": np.zeros((4, 3)), "mask": np.ones((3, 3))}, r"a mask of shape \(3, 3\)"),
    ],
)
def test_a_bad_series_is_named(features: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"bad-one has .*{message}"):
        TimeSeriesBackbone(SMALL).check(Sample(id="bad-one", features=features))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("transfromer", "Did you mean 'transformer'?"),
        ({"name": "gru_d", "d_modl": 4}, "Did you mean 'd_model'?"),
        ({**SMALL, "n_heads": 3}, "must be a multiple of n_heads=3"),
        ({**SMALL, "activation": "gelo"}, "Did you mean 'gelu'?"),
        ({"name": "linear"}, "The number of features is not known"),
    ],
)
def test_wrong_settings_are_named(config: Any, message: str) -> None:
    arguments = {} if config == {"name": "linear"} else {"d_input": 3}
    with pytest.raises(ConfigError) as caught:
        TimeSeriesBackbone(config, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["mask", "nan", "no time"])
def test_tensors_that_say_nothing_are_refused(kind: str) -> None:
    model = MolfunStructureModel(
        "timeseries", config={"d_input": 2, "d_model": 8, "n_heads": 2}, head="binary",
        device="cpu",
    )  # fmt: skip
    batch = {"timeseries": torch.randn(2, 7, 2), "mask": torch.ones(2, 7, 2, dtype=torch.bool)}
    if kind == "mask":
        batch["mask"][1] = False
    elif kind == "nan":
        batch["timeseries"][1] = torch.nan
    else:
        batch = {"timeseries": torch.randn(2, 0, 2)}
    for use in (
        lambda: model.predict(batch),
        lambda: model.fit([{**batch, "label": torch.tensor([0.0, 1.0])}], epochs=1),
    ):
        with pytest.raises(DataError, match=r"no observed value|series of shape \(0, 2\)"):
            use()


def test_contrast_of_single_series_is_an_error_not_a_file(tmp_path: Path) -> None:
    """A batch of one has nothing to tell apart: the run would train nothing and write weights."""
    model = MolfunStructureModel(
        "timeseries", config={"d_input": 3, "d_model": 8, "n_heads": 2}, device="cpu"
    )
    alone = [SampleBatch([sample]) for sample in build_series(3)]
    with pytest.raises(RunError, match="Nothing was trained"):
        model.pretrain(alone, objective="contrastive", epochs=1, output_dir=tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_labels_that_are_missing_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    data = TimeSeriesDataset.from_arrays(values, [np.nan, 1.0, 2.0, 3.0, np.nan, 4.0])
    model = MolfunStructureModel(
        "timeseries", config={"d_input": 2, "d_model": 8, "n_heads": 2}, head="regression",
        device="cpu",
    )  # fmt: skip
    model.fit(data, epochs=1)
    assert "2 of 6 training samples have no label" in caplog.text


def test_batches_of_tensors_for_other_trainers() -> None:
    values = [np.ones((4, 2), np.float32), np.full((6, 2), np.nan, np.float32)]
    values[1][0] = 2.0
    data = TimeSeriesDataset.from_arrays(values, [0.0, 1.0])
    batch = TimeSeriesDataset.collate_tensors([data[0], data[1]])
    assert batch["timeseries"].shape == (2, 6, 2)
    assert batch["mask"].sum().item() == 4 * 2 + 2
    assert batch["padding_mask"].sum(1).tolist() == [4, 6]
    assert batch["label"].tolist() == [0.0, 1.0]
