"""What each strategy trains, and how fast, on the real OpenFold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from molfun.errors import ConfigError, RunError
from molfun.models.structure import MolfunStructureModel
from molfun.nn import lora
from molfun.nn.param_groups import for_optimizer
from molfun.sample import Sample, SampleBatch
from molfun.training import (
    FinetuneStrategy,
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
    choose_strategy,
)
from molfun.training.groups import make_optimizer

ModelFactory = Callable[..., MolfunStructureModel]
BatchFactory = Callable[..., list[SampleBatch]]
BLOCKS = "backbone.model.evoformer.blocks."
ATTENTIONS = (
    "msa_att_row.mha",
    "msa_att_col._msa_att.mha",
    "core.tri_att_start.mha",
    "core.tri_att_end.mha",
)
"""The four attentions of an Evoformer block (AlphaFold 2, supplement, algorithm 6)."""


def adapted_layers(model: MolfunStructureModel) -> set[str]:
    """Names of the layers that carry an adapter."""
    names = (name for name, _ in model.named_parameters() if lora.is_adapter(name))
    return {name.split(".lora_")[0] for name in names}


def adapted_modules(model: MolfunStructureModel) -> list[Any]:
    """The layers that carry an adapter."""
    return [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]


def rates(strategy: FinetuneStrategy, model: MolfunStructureModel) -> dict[str, float]:
    """Learning rate of every parameter that trains."""
    strategy.setup(model)
    return {name: group.lr for group in strategy.groups(model) for name, _ in group.parameters}


def trainable_counts(model: MolfunStructureModel) -> dict[str, int]:
    """Number of weights that train, by part of the model."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            if part == "backbone":
                part = "adapters" if lora.is_adapter(name) else name.split(".")[2]
            counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


# --- defaults of the guide -----------------------------------------------------------------------


def test_shared_defaults_are_those_of_the_guide() -> None:
    settings = HeadOnlyFinetune().to_dict()
    assert settings == {
        "name": "head_only",
        "scheduler": "cosine",
        "warmup_steps": 0,
        "warmup_ratio": 0.0,
        "min_lr_ratio": 1e-6,
        "ema_decay": 0.0,
        "accumulation_steps": 1,
        "grad_clip": 1.0,
        "amp": True,
        "early_stopping_patience": 0,
        "monitor": "val/loss",
        "weight_decay": 0.01,
        "optimizer": "adamw",
        "momentum": 0.9,
        "min_lr": None,
        "step_size": 30,
        "gamma": 0.1,
        "plateau_factor": 0.1,
        "plateau_patience": 10,
        "plateau_mode": None,
        "lr": 1e-3,
    }


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (LoRAFinetune(), {"rank": 8, "lr_lora": 1e-4, "target_modules": None, "alpha": None}),
        (PartialFinetune(), {"unfreeze_last_n": 4, "lr_trunk": 1e-5}),
        (PartialFinetune(), {"unfreeze_structure_module": True}),
        (FullFinetune(), {"lr": 1e-5, "layer_lr_decay": 0.95}),
    ],
)
def test_own_defaults_are_those_of_the_guide(
    strategy: FinetuneStrategy, expected: dict[str, Any]
) -> None:
    settings = strategy.to_dict()
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("strategy", "main", "head"),
    [
        (HeadOnlyFinetune(), 1e-3, 1e-3),
        (LoRAFinetune(), 1e-4, 1e-3),
        (LoRAFinetune(lr_lora=5e-5), 5e-5, 5e-4),
        (LoRAFinetune(lr_lora=5e-5, lr_head=2e-3), 5e-5, 2e-3),
        (PartialFinetune(), 1e-5, 1e-4),
        (PartialFinetune(lr_trunk=1e-5, lr_head=1e-3), 1e-5, 1e-3),
        (FullFinetune(), 1e-5, 1e-4),
        (FullFinetune(lr=1e-5, lr_head=1e-3), 1e-5, 1e-3),
    ],
)
def test_the_head_learns_ten_times_as_fast(
    strategy: FinetuneStrategy, main: float, head: float
) -> None:
    assert strategy.main_lr == main
    assert strategy.head_lr == pytest.approx(head, rel=1e-12)


def test_settings_of_the_guide_are_accepted() -> None:
    strategy = LoRAFinetune(
        rank=16,
        target_modules=["linear_q", "linear_k", "linear_v", "linear_o"],
        lr_lora=5e-5,
        lr_head=5e-4,
        warmup_steps=500,
        ema_decay=0.999,
        accumulation_steps=8,
        early_stopping_patience=5,
        use_hf=False,
    )
    assert strategy.target_modules == ("linear_q", "linear_k", "linear_v", "linear_o")
    PartialFinetune(
        unfreeze_last_n=8,
        unfreeze_structure_module=True,
        lr_trunk=1e-5,
        lr_head=1e-3,
        warmup_steps=500,
        ema_decay=0.999,
        scheduler="cosine",
        grad_clip=0.5,
    )
    full = FullFinetune(
        lr=1e-5,
        lr_head=1e-3,
        layer_lr_decay=0.95,
        lr_embedder=1e-7,
        lr_structure_module=1e-5,
        warmup_steps=1000,
        ema_decay=0.999,
        accumulation_steps=16,
        weight_decay=0.01,
        early_stopping_patience=3,
    )
    assert full.lr_of_block(0, 48) == 1e-5 * 0.95**47
    assert f"{full.lr_of_block(0, 48):.2e}" == "8.97e-07"
    assert full.lr_of_block(47, 48) == 1e-5


# --- validation ----------------------------------------------------------------------------------


def test_every_bad_value_of_a_strategy_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LoRAFinetune(
            rank=0,
            alpha=-1.0,
            dropout=1.0,
            lr_lora=0.0,
            lr_head=math.inf,
            target_modules=[],
            warmup_steps=-1,
            warmup_ratio=2.0,
            weight_decay=-0.1,
            min_lr_ratio=math.nan,
        )
    assert str(caught.value) == (
        "LoRAFinetune: Give warmup_steps or warmup_ratio, not both. "
        "warmup_steps must be at least 0, got -1. "
        "warmup_ratio must be from 0 to 1, got 2.0. "
        "min_lr_ratio must be from 0 to 1, got nan. "
        "weight_decay must be at least 0, got -0.1. "
        "lr_lora must be above 0, got 0.0. "
        "lr_head must be above 0, got inf. "
        "alpha must be above 0, got -1.0. "
        "rank must be from 1 to 4096, got 0. "
        "dropout must be in [0, 1), got 1.0. "
        "target_modules is empty; leave it out for the backbone's default."
    )


def test_values_of_the_wrong_type_are_named_at_once() -> None:
    # YAML reads 1e-4 as text, and True is a whole number to Python
    with pytest.raises(ConfigError) as caught:
        LoRAFinetune(
            rank=8.0,  # type: ignore[arg-type]
            lr_lora="1e-4",  # type: ignore[arg-type]
            lr_head=True,
            accumulation_steps=2.5,  # type: ignore[arg-type]
            amp=1,  # type: ignore[arg-type]
            warmup_steps=None,  # type: ignore[arg-type]
        )
    assert str(caught.value) == (
        "LoRAFinetune: warmup_steps must be a whole number, got None. "
        "accumulation_steps must be a whole number, got 2.5. "
        "amp must be true or false, got 1. "
        "rank must be a whole number, got 8.0. "
        "lr_lora must be a number, got '1e-4'. "
        "lr_head must be a number, got True."
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HeadOnlyFinetune(lr=-1e-3), "lr must be above 0, got -0.001."),
        (lambda: PartialFinetune(unfreeze_last_n=0), "unfreeze_last_n must be at least 1, got 0."),
        (
            lambda: FullFinetune(layer_lr_decay=1.5),
            "layer_lr_decay must be above 0 and at most 1, got 1.5.",
        ),
        (lambda: FullFinetune(lr_embedder=0.0), "lr_embedder must be above 0, got 0.0."),
        (
            lambda: LoRAFinetune(target_modules="linear_q"),  # type: ignore[arg-type]
            "target_modules must be a list of names, got 'linear_q'.",
        ),
        (
            lambda: FinetuneStrategy.from_dict({"name": "lorra"}),
            " 'lorra'; known: full, gradual, head_only, lora, partial. Did you mean 'lora'?",
        ),
        (
            lambda: FinetuneStrategy.from_dict({"lr": 1e-3}),
            "name no strategy. Add name: one of full, gradual, head_only, lora, partial.",
        ),
        (
            lambda: FinetuneStrategy.from_dict({"name": "lora", "rnak": 4}),
            "Unknown setting of LoRAFinetune 'rnak'; known: ",
        ),
    ],
)
def test_the_text_of_an_error_says_what_to_do(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_number_types_of_numpy_are_numbers() -> None:
    assert LoRAFinetune(lr_lora=np.float64(1e-4)).lr_lora == 1e-4


@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(lr=2e-3, ema_decay=0.99),
        LoRAFinetune(rank=4, alpha=16.0, target_modules=["linear_q"], use_rslora=True),
        PartialFinetune(unfreeze_last_n=2, unfreeze_structure_module=False, lr_head=1e-3),
        FullFinetune(layer_lr_decay=0.9, lr_embedder=1e-8, warmup_ratio=0.1),
    ],
)
def test_json_round_trip_keeps_every_field(strategy: FinetuneStrategy) -> None:
    restored = FinetuneStrategy.from_dict(json.loads(json.dumps(strategy.to_dict())))
    assert type(restored) is type(strategy)
    assert dataclasses.asdict(restored) == dataclasses.asdict(strategy)


# --- LoRA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_hf", [True, False])
def test_lora_adapts_queries_and_values_of_every_attention(
    tiny_model: ModelFactory, use_hf: bool
) -> None:
    model = tiny_model()
    LoRAFinetune(use_hf=use_hf).setup(model)
    expected = {
        f"{BLOCKS}{block}.{attention}.{target}"
        for block in range(2)
        for attention in ATTENTIONS
        for target in ("linear_q", "linear_v")
    }
    assert adapted_layers(model) == expected


def test_lora_targets_match_whole_names_inside_the_blocks_only(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    targets = ["linear_q", "linear_k", "linear_v", "linear_o"]
    LoRAFinetune(target_modules=targets).setup(model)
    adapted = adapted_layers(model)
    assert adapted == {
        f"{BLOCKS}{block}.{attention}.{target}"
        for block in range(2)
        for attention in ATTENTIONS
        for target in targets
    }
    # the structure module and the template and extra-MSA stacks have layers of these names too
    elsewhere = {
        name.split(".")[2]
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in targets and isinstance(module, nn.Linear)
    }
    assert {"structure_module", "extra_msa_stack", "template_pair_stack"} <= elsewhere
    assert not any("linear_q_points" in name for name in adapted)


def test_lora_takes_part_of_a_path_as_target(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    LoRAFinetune(target_modules=["msa_att_row.mha.linear_q"]).setup(model)
    assert adapted_layers(model) == {f"{BLOCKS}{i}.msa_att_row.mha.linear_q" for i in range(2)}


def test_a_backbone_without_layers_for_lora_says_so(
    tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setattr(type(model.backbone), "lora_targets", ())
    with pytest.raises(ConfigError, match=r"^OpenFold names no layers for LoRA \(lora_targets\)"):
        LoRAFinetune().setup(model)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("linear_qq", "Did you mean linear_q"),
        ("msa_att_row.linear_v", "Did you mean linear_v"),
        ("linear_q_points", "Did you mean"),
        ("layer_norm_m", "Linear layers there: "),
        ("zzz", "linear_q, linear_v"),
    ],
)
def test_wrong_targets_list_the_near_names(
    tiny_model: ModelFactory, target: str, hint: str
) -> None:
    model = tiny_model()
    before = {name for name, _ in model.named_parameters()}
    with pytest.raises(ConfigError) as caught:
        LoRAFinetune(target_modules=["linear_q", target]).setup(model)
    text = str(caught.value)
    assert f"target_modules ['{target}'] match no linear layer in model.evoformer.blocks." in text
    assert hint in text
    assert {name for name, _ in model.named_parameters()} == before, "nothing was injected"


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"rank": 3, "alpha": 0.1}, {"dropout": 0.5}],
)
def test_injection_changes_no_output(
    tiny_model: ModelFactory, batches: BatchFactory, settings: dict[str, Any]
) -> None:
    model, batch = tiny_model(), batches(2, batch_size=2)[0]
    before = model.predict(batch, outputs=("single", "pair"))
    LoRAFinetune(**settings).setup(model)
    after = model.predict(batch, outputs=("single", "pair"))
    tolerance = 1e-5 if settings.get("use_dora") else 0.0  # DoRA divides by the weight's norm
    for name in ("single", "pair"):
        difference = getattr(after["trunk"], name) - getattr(before["trunk"], name)
        assert float(difference.abs().max()) <= tolerance


def test_lora_scaling_is_two_by_default(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    LoRAFinetune(rank=4).setup(model)
    layers = adapted_modules(model)
    assert len(layers) == 16
    assert {layer.scaling["default"] for layer in layers} == {2.0}
    assert {layer.lora_A["default"].weight.shape[0] for layer in layers} == {4}
    assert all(not layer.lora_B["default"].weight.any() for layer in layers)


def test_adapters_start_from_the_seed_alone(tiny_model: ModelFactory) -> None:
    def first_adapter(seed: int, disturbance: int) -> torch.Tensor:
        torch.manual_seed(disturbance)
        model = tiny_model()
        LoRAFinetune().setup(model, seed=seed)
        return next(p for n, p in model.named_parameters() if ".lora_A" in n).detach()

    assert torch.equal(first_adapter(0, 1), first_adapter(0, 2))
    assert not torch.equal(first_adapter(0, 1), first_adapter(1, 1))


def test_a_second_fit_goes_on_from_the_adapters_of_the_first(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model, strategy = tiny_model(), LoRAFinetune(rank=4, lr_lora=1e-2)
    model.fit(batches(3), strategy=strategy, epochs=1)
    first = {n: p.detach().clone() for n, p in model.named_parameters() if lora.is_adapter(n)}
    layers = adapted_layers(model)
    model.fit(batches(3), strategy=strategy, epochs=1)
    assert adapted_layers(model) == layers
    second = dict(model.named_parameters())
    assert any(not torch.equal(first[n], second[n]) for n in first)
    drift = sum(float((second[n].detach() - first[n]).abs().sum()) for n in first)
    size = sum(float(first[n].abs().sum()) for n in first)
    assert drift < size, "the adapters were not started anew"


def test_a_second_fit_with_other_adapters_is_refused(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model = tiny_model()
    model.fit(batches(2), strategy=LoRAFinetune(rank=4), epochs=1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(RunError) as caught:
        model.fit(batches(2), strategy=LoRAFinetune(rank=8), epochs=1)
    assert str(caught.value) == (
        "The model already has adapters of another kind (rank 4 there, 8 asked for, alpha 8.0 "
        "there, 16.0 asked for). Use the same strategy to go on training them, or start from a "
        "new model."
    )
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_other_learning_rates_on_the_same_adapters_are_fine(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model = tiny_model()
    model.fit(batches(2), strategy=LoRAFinetune(rank=4), epochs=1)
    model.fit(batches(2), strategy=LoRAFinetune(rank=4, lr_lora=1e-6), epochs=1)


@pytest.mark.parametrize(
    "strategy", [LoRAFinetune(rank=4), HeadOnlyFinetune(), PartialFinetune(unfreeze_last_n=1)]
)
def test_merged_adapters_cannot_be_trained(
    tiny_model: ModelFactory, batches: BatchFactory, strategy: FinetuneStrategy
) -> None:
    model = tiny_model()
    model.fit(batches(2), strategy=LoRAFinetune(rank=4, lr_lora=1e-2), epochs=1)
    model.merge()
    with pytest.raises(RunError, match=r"merged into the weights\. Call model\.unmerge\(\)"):
        model.fit(batches(2), strategy=strategy, epochs=1)
    model.unmerge().fit(batches(2), strategy=strategy, epochs=1)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_merged_weights_predict_the_same_and_come_back_bit_by_bit(
    tiny_model: ModelFactory, batches: BatchFactory, settings: dict[str, Any]
) -> None:
    model, batch = tiny_model(), batches(3, batch_size=3)[0]
    model.fit(batches(3), strategy=LoRAFinetune(rank=4, lr_lora=1e-2, **settings), epochs=2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = model.predict(batch)["prediction"]
    for _ in range(3):
        merged = model.merge().predict(batch)["prediction"]
        assert float((merged - expected).abs().max()) < 1e-4
        model.unmerge()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert torch.equal(model.predict(batch)["prediction"], expected)


# --- Partial and Full ----------------------------------------------------------------------------


def test_partial_trains_the_last_blocks_the_structure_module_and_the_head(
    tiny_model: ModelFactory,
) -> None:
    model = tiny_model()
    PartialFinetune(unfreeze_last_n=1).setup(model)
    for name, parameter in model.named_parameters():
        path = name.split(".")
        expected = (
            path[0] == "head"
            or path[2] == "structure_module"
            or name.startswith((f"{BLOCKS}1.", "backbone.model.evoformer.linear."))
        )
        assert parameter.requires_grad == expected, name


def test_partial_without_the_structure_module(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    PartialFinetune(unfreeze_last_n=2, unfreeze_structure_module=False).setup(model)
    assert set(trainable_counts(model)) == {"evoformer", "head"}
    assert all(p.requires_grad for block in model.backbone.blocks() for p in block.parameters())


def test_partial_with_too_many_blocks_says_how_many_there_are(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    with pytest.raises(ConfigError) as caught:
        PartialFinetune(unfreeze_last_n=3).setup(model)
    assert str(caught.value) == (
        "unfreeze_last_n=3, but OpenFold has 2 blocks. Use at most 2, or FullFinetune."
    )
    assert model.strategy is None


def test_full_decays_the_rate_with_depth(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    found = rates(FullFinetune(lr=1e-4, layer_lr_decay=0.5), model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    by_part = {
        f"{BLOCKS}1.": 1e-4,
        f"{BLOCKS}0.": 0.5e-4,
        "backbone.model.evoformer.linear.": 1e-4,
        "backbone.model.extra_msa_stack.": 0.25e-4,
        "backbone.model.extra_msa_embedder.": 0.25e-4,
        "backbone.model.template_": 0.25e-4,
        "backbone.model.recycling_embedder.": 0.25e-4,
        "backbone.model.input_embedder.": 1e-6,
        "backbone.model.structure_module.": 1e-4,
        "backbone.model.aux_heads.": 1e-4,
        "head.": 1e-3,
    }
    for name, rate in found.items():
        expected = next(value for prefix, value in by_part.items() if name.startswith(prefix))
        assert rate == pytest.approx(expected, rel=1e-12), name


def test_full_takes_rates_for_embedder_and_structure_module(tiny_model: ModelFactory) -> None:
    strategy = FullFinetune(lr_embedder=1e-7, lr_structure_module=3e-6, lr_head=2e-3)
    found = rates(strategy, tiny_model())
    assert {r for n, r in found.items() if ".input_embedder." in n} == {1e-7}
    assert {r for n, r in found.items() if ".structure_module." in n} == {3e-6}
    assert {r for n, r in found.items() if n.startswith("head.")} == {2e-3}


def test_biases_and_norms_get_no_weight_decay(tiny_model: ModelFactory) -> None:
    model, strategy = tiny_model(), FullFinetune(weight_decay=0.1)
    strategy.setup(model)
    options = for_optimizer(strategy.groups(model), strategy.weight_decay)
    decay = {name: o["weight_decay"] for o in options for name in o["param_names"]}  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        assert decay[name] == (0.1 if parameter.ndim > 1 else 0.0), name
    assert {0.0, 0.1} == set(decay.values())


def test_weight_decay_without_gradient_moves_matrices_only(tiny_model: ModelFactory) -> None:
    model, strategy = tiny_model(), HeadOnlyFinetune(lr=0.1, weight_decay=0.5)
    strategy.setup(model)
    optimizer, parameters = make_optimizer(strategy, model)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_one_strategy_after_another_leaves_no_trace_of_the_first(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    FullFinetune().setup(model)
    HeadOnlyFinetune().setup(model)
    assert set(trainable_counts(model)) == {"head"}
    LoRAFinetune().setup(model)
    assert set(trainable_counts(model)) == {"adapters", "head"}
    PartialFinetune(unfreeze_last_n=1).setup(model)
    assert set(trainable_counts(model)) == {"evoformer", "structure_module", "head"}


# --- automatic choice ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_samples", "name", "rank"),
    [
        (1, "head_only", None),
        (99, "head_only", None),
        (100, "lora", 4),
        (199, "lora", 4),
        (200, "lora", 8),
        (2_000, "lora", 8),
        (2_001, "lora", 16),
        (5_000, "lora", 16),
        (5_001, "partial", None),
        (10_000, "partial", None),
        (10_001, "full", None),
    ],
)
def test_the_decision_tree(n_samples: int, name: str, rank: int | None) -> None:
    strategy = choose_strategy(n_samples)
    assert strategy.name == name
    assert getattr(strategy, "rank", None) == rank


def test_partial_trains_no_more_blocks_than_there_are() -> None:
    found = [choose_strategy(7_000, n_blocks=n).to_dict()["unfreeze_last_n"] for n in (2, 48)]
    assert found == [2, 4]


def test_the_rates_of_all_parts_are_one_sentence(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    strategy = FullFinetune(lr=1e-5, layer_lr_decay=0.5)
    strategy.setup(model)
    assert strategy.describe_rates(model) == (
        "Peak learning rates: embedder 1.0e-07, early 2.5e-06, blocks 5.0e-06 to 1.0e-05, "
        "structure_module 1.0e-05, output 1.0e-05, head 1.0e-04; lr is that of head"
    )


def test_auto_counts_the_labels_that_are_there(
    tiny_model: ModelFactory, samples: Callable[..., list[Sample]]
) -> None:
    # one protein under many names: the frozen trunk runs once
    one = samples(1)[0]
    labels = [float(i % 7) for i in range(99)] + [None, math.nan] * 10
    many = [dataclasses.replace(one, id=f"s{i}", target=t) for i, t in enumerate(labels)]
    model = tiny_model()
    model.fit([SampleBatch(many)], epochs=1)
    assert model.strategy == HeadOnlyFinetune()


# --- the whole model -----------------------------------------------------------------------------


@pytest.mark.slow
def test_counts_on_the_full_model() -> None:
    """Counts of model_1_ptm; no training."""
    model = MolfunStructureModel("openfold", config="model_1_ptm", head="affinity", device="cpu")
    assert sum(p.numel() for p in model.backbone.parameters()) == 93_237_338
    assert model.head is not None
    assert sum(p.numel() for p in model.head.parameters()) == 49_409

    HeadOnlyFinetune().setup(model)
    assert trainable_counts(model) == {"head": 49_409}

    PartialFinetune().setup(model)
    counts = trainable_counts(model)
    blocks = sum(p.numel() for b in model.backbone.blocks()[-4:] for p in b.parameters())
    to_single = 256 * 384 + 384  # the projection of the first MSA row to `single`
    assert counts == {
        "evoformer": blocks + to_single,
        "structure_module": 2_019_116,
        "head": 49_409,
    }
    assert f"{(blocks + counts['structure_module']) / 1e6:.2f} M" == "9.34 M"

    found = rates(FullFinetune(), model)
    assert len(found) == sum(1 for _ in model.parameters())
    assert f"{found[BLOCKS + '0.msa_att_row.mha.linear_q.weight']:.2e}" == "8.97e-07"
    assert found[BLOCKS + "47.msa_att_row.mha.linear_q.weight"] == 1e-5
    assert found["backbone.model.recycling_embedder.linear.weight"] == 1e-5 * 0.95**48

    LoRAFinetune(rank=8).setup(model)
    assert len(adapted_layers(model)) == 384
    assert trainable_counts(model) == {"adapters": 1_179_648, "head": 49_409}
    smaller = sum(4 * (m.in_features + m.out_features) for m in adapted_modules(model))
    assert smaller == 589_824, "at rank 4"
