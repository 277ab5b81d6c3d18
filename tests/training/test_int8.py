"""LoRA on a frozen base in int8: numbers, memory of the graph, checkpoints, resume, refusals."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import Crash, run_fit
from tiny import build_samples, build_tiny_model
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from molfun.cli.main import app
from molfun.errors import ConfigError, MissingDependencyError, RunError
from molfun.fingerprint import tensor_digests
from molfun.models.ensemble import Ensemble
from molfun.models.skeleton import Skeleton
from molfun.models.structure import MolfunStructureModel
from molfun.nn import int8
from molfun.nn.kernels import set_matrix_kernel
from molfun.sample import Sample
from molfun.training import FinetuneStrategy, FullFinetune, GradualFinetune, LoRAFinetune
from molfun.training.job import _why_whole

pytest.importorskip("torchao")
from molfun.nn.int8_weight import Int8Weight

STRATEGY = LoRAFinetune(rank=2, lr_lora=1e-2, dropout=0.1, base="int8", accumulation_steps=2)
SEQUENCES = ("MKVLATGGHK", "ACDEFGHIKLMN", "GGGGGHKW", "PPPWYV", "ACACACWW", "MMKKLL")


def data() -> list[Sample]:
    return [Sample(id=s, sequence=s, target=float(i)) for i, s in enumerate(SEQUENCES)]


def esm(**settings: Any) -> MolfunStructureModel:
    arguments = {"head": "regression", "device": "cpu", **settings}
    return MolfunStructureModel("esm2_tiny", **arguments)


def openfold() -> MolfunStructureModel:
    return build_tiny_model(backbone_config={"fill_zero_init": 0.1, "checkpointing": False})


def predicted(model: MolfunStructureModel, samples: list[Sample] | None = None) -> torch.Tensor:
    return torch.as_tensor(model.predict(samples or data())["prediction"])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of base weights in the names of fair-esm."""
    from safetensors.torch import save_file

    state = esm(seed=3).backbone.model.state_dict()  # type: ignore[union-attr]
    path = tmp_path / "base.safetensors"
    save_file({n: t.clone() for n, t in state.items() if n != "lm_head.weight"}, path)
    return path


# --- one weight ----------------------------------------------------------------------------------


def rows() -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(40, 70) * torch.logspace(-20, 5, 40).unsqueeze(1)
    weight[3] = 0
    return weight


def test_a_weight_is_within_half_a_step_and_comes_back_bit_by_bit() -> None:
    weight = rows()
    made = Int8Weight.of(weight)
    floats = made.dequantize()
    assert bool(((weight - floats).abs() <= made.scale * 0.5001).all())
    assert made.qdata.abs().amax(1).tolist() == [0 if i == 3 else 127 for i in range(40)]
    again = Int8Weight.of(floats)
    assert torch.equal(again, made)
    assert torch.equal(again.dequantize(), floats)


def test_the_numbers_are_torchaos() -> None:
    from torchao.quantization import Int8Tensor

    made = Int8Weight.of(rows())
    theirs = Int8Tensor(made.qdata, made.scale, [1, 70], torch.float32)
    assert torch.equal(theirs.dequantize(), made.dequantize())


@pytest.mark.parametrize("kernel", ["torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 70), (2, 3, 70)])
def test_a_layer_is_that_of_the_dequantised_weight(
    kernel: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    set_matrix_kernel(kernel)
    try:
        plain, small = nn.Linear(70, 40), nn.Linear(70, 40)
        made = Int8Weight.of(rows() / rows().abs().amax())
        with torch.no_grad():
            plain.weight.copy_(made)
            small.bias.copy_(plain.bias)
        small.weight = nn.Parameter(made, requires_grad=False)
        x = torch.randn(shape, requires_grad=True)
        results = []
        for layer in (plain, small):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                y = layer(x)
            assert y.dtype == dtype
            results.append((y, *torch.autograd.grad(y.float().square().sum(), [x, layer.bias])))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)
    finally:
        set_matrix_kernel("auto")


def test_the_graph_keeps_no_float_weight() -> None:
    layer = nn.Linear(70, 40)
    layer.weight = nn.Parameter(Int8Weight.of(rows()), requires_grad=False)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(3, 70, requires_grad=True))
    assert sum(t.numel() for t in kept if t.dtype != torch.int8) <= 40
    assert sum(t.numel() for t in kept if t.dtype == torch.int8) == 40 * 70


# --- a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [esm, openfold])
def test_the_linear_layers_of_the_blocks_are_in_int8_and_nothing_else(make: Any) -> None:
    model = make()
    before = {n for n, _ in model.named_parameters()}
    shown = model.count_parameters()
    STRATEGY.setup(model)
    blocks = {id(m) for block in model.backbone.blocks() for m in block.modules()}
    linear = {
        name
        for name, module in model.backbone.named_modules()
        if type(module).__mro__.count(nn.Linear) and id(module) in blocks and ".lora_" not in name
    }
    found = {n for n, p in model.backbone.named_parameters() if int8.is_int8(p)}
    assert found == {f"{name}.weight" for name in linear}
    assert len(found) > 10
    assert not any(p.requires_grad for p in model.parameters() if int8.is_int8(p))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in trained)
    added = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    assert model.count_parameters() == shown + added
    assert len(before) < len(dict(model.named_parameters()))


@pytest.mark.parametrize("make", [esm, openfold])
def test_outputs_are_those_of_the_rounded_weights(make: Any) -> None:
    """Every layer of the fast and the stock path runs: outputs of int8 and of the same floats."""
    samples = data() if make is esm else build_samples(2)
    model = make()
    STRATEGY.setup(model)
    floats = copy.deepcopy(model)
    int8.to_float(floats.backbone)
    assert not int8.holds_int8(floats.backbone)
    torch.testing.assert_close(predicted(model, samples), predicted(floats, samples))
    assert not torch.equal(predicted(make(), samples), predicted(model, samples))


@pytest.mark.parametrize("make", [esm, openfold])
def test_a_run_learns_and_resumes_bit_by_bit(make: Any, tmp_path: Path) -> None:
    strategy = replace(STRATEGY, lr_lora=1e-3, lr_head=1e-2, dropout=0.1)
    options: dict[str, Any] = {"strategy": strategy, "epochs": 3}
    made = [make() for _ in range(4)]
    whole = run_fit(None, model=made[0], **options)
    losses = [row["train_loss"] for row in whole.history]
    assert min(losses[1:]) < losses[0]
    with pytest.raises(Crash):
        run_fit(tmp_path, model=made[1], stop_at=10, **options)
    again = run_fit(tmp_path, model=made[2], resume=True, **options)
    assert repr(again.history) == repr(whole.history)
    for name, tensor in whole.weights.items():
        assert torch.equal(again.weights[name], tensor)
    other = replace(strategy, base="float32")
    with pytest.raises(RunError, match=r"strategy\.base"):
        run_fit(tmp_path, model=made[3], strategy=other, epochs=3, resume=True)


# --- checkpoints ---------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    found = {}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                piece = file.get_slice(name)
                found[f"{path.name} {name} {piece.get_dtype()}"] = tuple(piece.get_shape())
    return found


@pytest.mark.parametrize("on_file", [True, False])
def test_a_checkpoint_is_that_of_float32_and_loads_with_and_without_int8(
    tmp_path: Path, weights: Path, on_file: bool
) -> None:
    base = {"weights": weights} if on_file else {}
    trained = {}
    for name in int8.BASES:
        strategy = LoRAFinetune(rank=2, lr_lora=1e-2, base=name)  # type: ignore[arg-type]
        trained[name] = esm(**base)
        trained[name].fit(data(), strategy=strategy, epochs=2)
        trained[name].save(tmp_path / name)
    assert files(tmp_path / "int8") == files(tmp_path / "float32")
    values = predicted(trained["int8"])
    same = MolfunStructureModel.from_checkpoint(tmp_path / "int8")
    assert int8.holds_int8(same.backbone)
    assert torch.equal(predicted(same), values)
    same.save(tmp_path / "again")
    assert torch.equal(predicted(MolfunStructureModel.from_checkpoint(tmp_path / "again")), values)
    plain = MolfunStructureModel.from_checkpoint(tmp_path / "int8", base="float32")
    assert not int8.holds_int8(plain.backbone)
    torch.testing.assert_close(predicted(plain), values, rtol=0.02, atol=0.02)
    small = MolfunStructureModel.from_checkpoint(tmp_path / "float32", base="int8")
    assert int8.holds_int8(small.backbone)
    torch.testing.assert_close(
        predicted(small), predicted(trained["float32"]), rtol=0.02, atol=0.02
    )
    # into a model that exists: the checkpoint decides
    loaded = esm(**base).load(tmp_path / "int8")
    assert torch.equal(predicted(loaded), predicted(trained["int8"]))


def test_weights_that_were_trained_before_are_kept_as_rounded(
    tmp_path: Path, weights: Path
) -> None:
    model = esm(weights=weights)
    model.fit(data(), strategy=FullFinetune(lr=1e-3), epochs=1)
    model.fit(data(), strategy=LoRAFinetune(rank=2, base="int8"), epochs=1)
    model.save(tmp_path / "c")
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "c")
    assert torch.equal(predicted(loaded), predicted(model))


def test_a_file_is_read_into_int8(weights: Path) -> None:
    late, early = esm(weights=weights), esm(weights=weights, base="int8")
    assert int8.holds_int8(early.backbone)
    assert early.base_digests == late.base_digests
    assert early.base_fingerprint == late.base_fingerprint
    STRATEGY.setup(late)
    STRATEGY.setup(early)
    theirs = dict(late.backbone.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in early.backbone.named_parameters())
    assert early.backbone.state_fingerprint() == late.backbone.state_fingerprint()
    assert early.backbone.state_fingerprint() != esm(weights=weights).backbone.state_fingerprint()


def test_a_random_model_of_a_seed_is_the_same_in_int8() -> None:
    late, early = esm(seed=2), esm(seed=2, base="int8")
    STRATEGY.setup(late)
    STRATEGY.setup(early)
    assert torch.equal(predicted(late), predicted(early))


@pytest.mark.parametrize("make", [esm, openfold])
def test_merging_gives_floats_with_the_adapter_and_goes_back(make: Any, tmp_path: Path) -> None:
    samples = data() if make is esm else build_samples(2)
    model = make()
    STRATEGY.setup(model)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.02)
    before = predicted(model, samples)
    model.merge()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not int8.holds_int8(model.backbone)
    torch.testing.assert_close(predicted(model, samples), before, rtol=1e-4, atol=1e-4)
    if make is esm:
        model.save(tmp_path / "merged")
        again = MolfunStructureModel.from_checkpoint(tmp_path / "merged")
        assert torch.equal(predicted(again), before)
    model.unmerge()
    assert int8.holds_int8(model.backbone)
    assert torch.equal(predicted(model, samples), before)


def test_an_ensemble_shares_weights_in_int8(tmp_path: Path, weights: Path) -> None:
    for seed in (0, 1):
        model = esm(weights=weights, base="int8", seed=seed)
        model.fit(data(), strategy=LoRAFinetune(rank=2, base="int8"), epochs=1, seed=seed)
        model.save(tmp_path / str(seed))
    ensemble = Ensemble.from_checkpoints([tmp_path / "0", tmp_path / "1"])
    alone = [
        predicted(MolfunStructureModel.from_checkpoint(tmp_path / str(seed))) for seed in (0, 1)
    ]
    mean = torch.as_tensor(ensemble.predict(data())["prediction"])
    torch.testing.assert_close(mean, torch.stack(alone).mean(0))


# --- refusals ------------------------------------------------------------------------------------


def test_a_backbone_that_was_not_tested_is_refused() -> None:
    message = (
        "base='int8' is for protein language models and OpenFold, and this is time series. "
        "Leave it out."
    )
    arguments: dict[str, Any] = {
        "backbone_config": {"d_input": 2}, "head": "regression", "device": "cpu"
    }  # fmt: skip
    model = MolfunStructureModel("timeseries", **arguments)
    for refused in (
        lambda: LoRAFinetune(base="int8").setup(model),
        lambda: MolfunStructureModel("timeseries", base="int8", **arguments),
    ):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert str(caught.value).lower() == message.lower()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "int4"}, "LoRAFinetune: Unknown base 'int4'; known: float32, int8."),
        (
            {"base": "int8", "use_dora": True},
            "LoRAFinetune: use_dora needs the norms of float weights, and base is 'int8'. Leave "
            "one out.",
        ),
    ],
)
def test_settings_that_do_not_go_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoRAFinetune(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("strategy", [FullFinetune(), LoRAFinetune()])
def test_another_strategy_is_refused_on_a_model_in_int8(strategy: FinetuneStrategy) -> None:
    with pytest.raises(RunError) as caught:
        strategy.setup(esm(base="int8"))
    assert str(caught.value) == (
        "The blocks of this model are in int8, which LoRAFinetune(base='int8') alone trains on. "
        "Use that, or build the model again without base='int8'."
    )


def test_a_checkpoint_whose_weights_were_trained_is_refused_in_int8(tmp_path: Path) -> None:
    model = esm()
    model.fit(data(), strategy=FullFinetune(), epochs=1)
    model.save(tmp_path / "c")
    with pytest.raises(ConfigError) as caught:
        MolfunStructureModel.from_checkpoint(tmp_path / "c", base="int8")
    assert str(caught.value) == (
        "base='int8' is for checkpoints of lora, and this is one of full. Leave it out."
    )


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (STRATEGY, "its frozen weights are in int8"),
        (GradualFinetune(inner=STRATEGY), "its frozen weights are in int8"),
        (FullFinetune(optimizer="muon"), "muon was not tested on parts of weights"),
        (FullFinetune(optimizer="adam"), ""),
    ],
)
def test_what_needs_whole_weights_is_not_divided(strategy: FinetuneStrategy, why: str) -> None:
    assert _why_whole(strategy) == why


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.delitem(sys.modules, "molfun.nn.int8_weight")
    with pytest.raises(MissingDependencyError) as caught:
        STRATEGY.setup(esm())
    assert "pip install 'molfun[int8]'" in str(caught.value)


# --- around it -----------------------------------------------------------------------------------


def test_gradual_trains_on_it_as_well() -> None:
    strategy = GradualFinetune(inner=STRATEGY, unfreeze_epoch=1)
    assert strategy.quantises
    again = FinetuneStrategy.from_dict(json.loads(json.dumps(strategy.to_dict())))
    assert again == strategy
    history = esm().fit(data(), strategy=strategy, epochs=2)
    assert len(history) == 2


def test_a_skeleton_shows_what_would_train_without_numbers() -> None:
    skeleton = Skeleton("esm2_tiny", head="regression")
    STRATEGY.setup(skeleton)
    assert any(".lora_" in n for n, p in skeleton.named_parameters() if p.requires_grad)


def test_digests_tell_int8_from_floats_and_know_their_source() -> None:
    weight = rows()
    of = {"w": Int8Weight.of(weight)}
    assert tensor_digests(of, of_source=True) == tensor_digests({"w": weight})
    assert tensor_digests(of) != tensor_digests({"w": weight})
    assert tensor_digests(of) == tensor_digests({"w": nn.Parameter(of["w"], requires_grad=False)})
    assert functional.linear(torch.ones(1, 70), of["w"]).shape == (1, 40)


def test_the_command_line_trains_and_predicts(tmp_path: Path, weights: Path) -> None:
    table = tmp_path / "t.csv"
    lines = [f"{sample.sequence},{sample.target}" for sample in data() * 4]
    table.write_text("sequence,y\n" + "\n".join(lines) + "\n")
    run = tmp_path / "run"
    result = CliRunner().invoke(
        app,
        ["fine-tune", "--backbone", "esm2_tiny", "--weights", str(weights), "--data", str(table),
         "--target-column", "y", "--strategy", "lora", "strategy_config.base=int8", "--epochs", "2",
         "--output", str(run), "--device", "cpu"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    saved = json.loads((run / "checkpoint" / "meta.json").read_text())
    assert saved["strategy"]["base"] == "int8"
    result = CliRunner().invoke(
        app,
        ["predict", str(run / "checkpoint"), "--data", str(table), "--output",
         str(tmp_path / "p.csv"), "--device", "cpu"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "p.csv").read_text().splitlines()) == len(lines) + 1
