"""What the guide promises of fine-tuning under Lightning (S33 to S48)."""

from __future__ import annotations

import csv
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from torch.nn import functional
from torch.utils.data import DataLoader

pl = pytest.importorskip("lightning.pytorch", reason="needs pip install 'molfun[lightning]'")

from molfun.errors import CheckpointError, ConfigError, DataError, UnsafeFileError  # noqa: E402
from molfun.lightning import FineTuneModule, SSLPretrainModule  # noqa: E402

LINEAR = {"name": "linear", "d_input": 3, "d_model": 8, "dropout": 0.0}
CLASSES = {"accuracy", "f1", "auroc", "auprc"}
TASKS: dict[str, dict[str, Any]] = {
    "binary": {"task_type": "binary"},
    "multiclass": {"task_type": "multiclass", "n_classes": 3},
    "multilabel": {"task_type": "multilabel", "n_classes": 3},
    "regression": {"task_type": "regression"},
}


def module(
    kind: str = "binary",
    *,
    encoder: Any = LINEAR,
    seed: int = 0,
    files: Any = None,
    **sections: Any,
) -> FineTuneModule:
    torch.manual_seed(seed)
    more = sections.pop("task", {})
    settings = {"encoder": encoder, "task": {**TASKS[kind], **more}, **sections}
    return FineTuneModule(settings, **(files or {}))


def copies(part: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in part.parameters()]


def change(part: torch.nn.Module, before: list[torch.Tensor]) -> float:
    pairs = zip(part.parameters(), before, strict=True)
    return max(float((p.detach() - b).abs().max()) for p, b in pairs)


class Watch(pl.Callback):  # type: ignore[misc,name-defined]
    """How far encoder and head are from where they began, after each epoch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = [copies(pl_module.get_encoder()), copies(pl_module.get_task_head())]
        self.encoder: list[float] = []
        self.head: list[float] = []
        self.modes: list[bool] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.modes.append(pl_module.get_encoder().training)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.encoder.append(change(pl_module.get_encoder(), self.start[0]))
        self.head.append(change(pl_module.get_task_head(), self.start[1]))


# --- checkpoints (S33, S34, S48) -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pt", "ckpt"])
def test_a_pretrained_encoder_is_loaded(
    pretrained: dict[str, Path], series: Any, kind: str
) -> None:
    """S33, S34: weights, settings and the scale of the input, without naming any setting."""
    name = "checkpoint_path" if kind == "pt" else "pretrain_checkpoint_path"
    tuned = module(encoder={}, files={name: pretrained[kind]}).eval()
    source = SSLPretrainModule.load_from_checkpoint(pretrained["ckpt"]).eval()
    assert tuned.get_encoder().config == source.get_encoder().config
    batch = {key: value[None] for key, value in series(1)[0].items() if key != "label"}
    assert torch.equal(tuned.backbone(batch).single, source.backbone(batch).single)
    assert bool(tuned.backbone.inputs_fitted)


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path) -> None:
    """S34: in one line."""
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}, "callbacks": Path("x")}, path)
    with pytest.raises(UnsafeFileError) as caught:
        module(encoder={}, files={"pretrain_checkpoint_path": path})
    assert str(caught.value) == (
        f"Refused {path}: it holds more than tensors and plain values, and reading it could run "
        f"code. Ask its author for safetensors."
    )


def test_two_files_or_none_that_exists_are_refused(pretrained: dict[str, Path]) -> None:
    """S33, S34."""
    both = {"checkpoint_path": pretrained["pt"], "pretrain_checkpoint_path": pretrained["ckpt"]}
    with pytest.raises(ConfigError, match="checkpoint_path or pretrain_checkpoint_path, not both"):
        module(encoder={}, files=both)
    with pytest.raises(CheckpointError, match=r"No such file: nowhere\.pt"):
        module(encoder={}, files={"checkpoint_path": "nowhere.pt"})


@pytest.mark.parametrize("kind", ["pt", "ckpt"])
def test_settings_that_differ_from_the_file_are_named(
    pretrained: dict[str, Path], kind: str
) -> None:
    """S48: all of them at once; those that agree or are left out are fine."""
    name = "checkpoint_path" if kind == "pt" else "pretrain_checkpoint_path"
    files = {name: pretrained[kind]}
    with pytest.raises(ConfigError) as caught:
        module(encoder={"d_model": 32, "n_heads": 2, "n_layers": 4}, files=files)
    text = str(caught.value)
    assert f"The section encoder does not match {pretrained[kind]}" in text
    assert "d_model: 16 in the file, 32 here" in text
    assert "n_layers: 1 in the file, 4 here" in text
    assert "n_heads" not in text
    agreed = module(encoder={"name": "transformer", "d_model": 16}, files=files)
    assert agreed.get_encoder().config.n_layers == 1
    with pytest.raises(ConfigError, match=r"name: 'transformer' in the file, 'gru_d' here"):
        module(encoder={"name": "gru_d"}, files=files)
    with pytest.raises(ConfigError, match=r"'d_modle'.*Did you mean 'd_model'\?"):
        module(encoder={"d_modle": 16}, files=files)


def test_values_are_standardised_as_they_were_in_pretraining(
    pretrained: dict[str, Path], tmp_path: Path
) -> None:
    """S48: and anything else is refused."""
    with pytest.raises(ConfigError, match="standardize is false, but values were standardised"):
        module(encoder={}, data={"standardize": False}, files={"checkpoint_path": pretrained["pt"]})
    torch.manual_seed(0)
    plain = SSLPretrainModule(
        {"encoder": LINEAR, "ssl": {"name": "mae"}, "data": {"standardize": False}}
    )
    plain.save_encoder(tmp_path / "plain.pt")
    tuned = module(encoder={}, files={"checkpoint_path": tmp_path / "plain.pt"})
    assert not tuned.backbone.standardize


def test_weights_without_settings_need_a_section_encoder(tmp_path: Path) -> None:
    """S33, S48: a bare state dict says nothing of how the encoder was built."""
    source = module().get_encoder()
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    files = {"checkpoint_path": tmp_path / "bare.pt"}
    with pytest.raises(ConfigError, match=r"does not say how its encoder was built.*d_input"):
        module(encoder={}, files=files)
    loaded = module(seed=1, files=files).get_encoder()
    assert change(loaded, copies(source)) == 0


# --- freezing (S35 to S37) -----------------------------------------------------------------------


def test_linear_probing_is_the_default(trainer: Any, loader: Any) -> None:
    """S35: the encoder stays as it is, bit by bit, and in eval mode; the head trains."""
    watch, tuned = Watch(), module()
    trainer(2, callbacks=[watch]).fit(tuned, loader(shuffle=True))
    assert watch.encoder == [0.0, 0.0]
    assert watch.head[0] > 0
    assert not any(watch.modes)
    assert bool(tuned.head.inputs_fitted)  # type: ignore[union-attr]


def test_full_fine_tuning_trains_both(trainer: Any, loader: Any) -> None:
    """S36."""
    watch = Watch()
    tuned = module(training={"freeze_encoder": False})
    trainer(1, callbacks=[watch]).fit(tuned, loader())
    assert watch.encoder[0] > 0
    assert watch.head[0] > 0
    assert all(watch.modes)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_encoder_trains_from_the_epoch_it_is_unfrozen_in(
    trainer: Any, loader: Any, optimizer: str
) -> None:
    """S37, S44: not at all before, and truly from then on; dropout likewise."""
    watch = Watch()
    tuned = module(
        training={"freeze_encoder": True, "unfreeze_epoch": 2},
        optimizer={"name": optimizer, "lr": 1e-2, "weight_decay": 0.1},
    )
    trainer(4, callbacks=[watch]).fit(tuned, loader(), loader(8))
    assert watch.encoder[:2] == [0.0, 0.0]
    assert 0 < watch.encoder[2] < watch.encoder[3]
    assert watch.modes == [False] * 6 + [True] * 6


def test_everything_is_in_the_optimizer_from_the_start() -> None:
    """S37, S44: what is frozen has no gradient and asks for none."""
    tuned = module(training={"unfreeze_epoch": 2})
    groups = tuned.configure_optimizers().param_groups
    inside = {id(p) for group in groups for p in group["params"]}
    assert inside == {id(p) for p in tuned.parameters()}
    assert not any(p.requires_grad for p in tuned.get_encoder().parameters())
    assert all(p.requires_grad for p in tuned.get_task_head().parameters())


def test_a_resumed_run_stays_unfrozen(trainer: Any, loader: Any, tmp_path: Path) -> None:
    """S37: three epochs, stopped after the second, give what three in one go give."""
    settings = {
        "task": {"head_type": "linear"},
        "training": {"unfreeze_epoch": 1},
        "optimizer": {"lr": 1e-2},
    }
    whole = module(**settings)
    trainer(3).fit(whole, loader())
    first = module(**settings)
    stock = trainer(2)
    stock.fit(first, loader())
    stock.save_checkpoint(tmp_path / "last.ckpt")
    second, watch = module(seed=1, **settings), Watch()
    trainer(3, callbacks=[watch]).fit(
        second, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert watch.encoder[0] > 0
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_an_encoder_never_trains_stay_frozen(trainer: Any, loader: Any) -> None:
    """S37: unfreezing gives back what was there before."""
    tuned = module(training={"unfreeze_epoch": 0})
    fixed = tuned.get_encoder().projection.bias
    tuned._trains = frozenset({"encoder.projection.weight"})
    before = fixed.detach().clone()
    trainer(1).fit(tuned, loader())
    assert torch.equal(fixed, before)
    assert tuned.get_encoder().projection.weight.grad is not None


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({"freeze_encoder": False, "unfreeze_epoch": 2}, "unfreeze_epoch goes with freeze_encoder"),
        ({"unfreeze_epoch": -1}, "training.unfreeze_epoch: .*greater than or equal to 0"),
    ],
)
def test_unfreezing_what_is_not_frozen_is_refused(training: dict[str, Any], text: str) -> None:
    """S37."""
    with pytest.raises(ConfigError, match=text):
        module(training=training)


# --- tasks and heads (S38, S39) ------------------------------------------------------------------


@pytest.mark.parametrize("head", ["mlp", "linear"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_with_every_head(series: Any, task: str, head: str) -> None:
    """S38, S39: shapes and what the outputs mean."""
    tuned = module(task, task={"head_type": head}).eval()
    values = torch.stack([s["timeseries"] for s in series(4)])
    outputs = tuned(values, torch.ones_like(values, dtype=torch.bool))
    if task == "regression":
        assert outputs["prediction"].shape == (4,)
        return
    width = 2 if task == "binary" else 3
    assert outputs["logits"].shape == (4, width)
    expected = (
        outputs["logits"].sigmoid() if task == "multilabel" else outputs["logits"].softmax(-1)
    )
    torch.testing.assert_close(outputs["probs"], expected)


def test_an_mlp_head_has_the_layers_it_is_given() -> None:
    """S39: hidden widths and dropout."""
    head = module(task={"hidden_dims": [32, 16], "dropout": 0.4}).get_task_head()
    widths = [m.out_features for m in head.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [32, 16, 2]
    assert {m.p for m in head.modules() if isinstance(m, torch.nn.Dropout)} == {0.4}
    linear = module(task={"head_type": "linear", "hidden_dims": [32]}).get_task_head()
    assert [m.out_features for m in linear.modules() if isinstance(m, torch.nn.Linear)] == [2]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_number_of_classes_is_required(task: str) -> None:
    """S38."""
    with pytest.raises(ConfigError, match=f"task.n_classes is missing: a {task} task needs"):
        module(task, task={"n_classes": None})


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_two_classes_work_for_every_task(trainer: Any, series: Any, task: str) -> None:
    """S38: two classes are not taken for a binary task."""
    data = series(16, task=task)
    for sample in data:
        sample["label"] = sample["label"][:2] if task == "multilabel" else sample["label"] % 2
    tuned = module(task, task={"n_classes": 2})
    loader: Any = DataLoader(data, batch_size=8)
    stock = trainer(1)
    stock.fit(tuned, loader, loader)
    assert not math.isnan(stock.callback_metrics["val/auroc"])


def test_losses_are_those_of_the_guide(series: Any) -> None:
    """S38: cross entropy of two logits, and the mean squared error of one output in its units."""
    batch = torch.utils.data.default_collate(series(6))
    tuned = module().eval()
    logits = tuned(batch["timeseries"], batch["mask"])["logits"]
    expected = functional.cross_entropy(logits, batch["label"])
    assert float(tuned.validation_step(batch)) == pytest.approx(float(expected.detach()))
    batch = torch.utils.data.default_collate(series(6, task="regression"))
    tuned = module("regression").eval()
    predicted = tuned(batch["timeseries"], batch["mask"])["prediction"]
    expected = functional.mse_loss(predicted, batch["label"])
    assert float(tuned.validation_step(batch)) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize(
    ("task", "label", "text"),
    [
        ("binary", torch.tensor([0, 5]), "1 unknown class in the labels; known: 0, 1"),
        ("binary", torch.zeros(3), r"label must be \(2,\), got \(3,\)"),
        ("multilabel", torch.zeros(2), r"label must be \(2, 3\), got \(2,\)"),
        ("multilabel", torch.full((2, 3), 2.0), r"are 0 or 1 each, got \[2.0, 2.0, 2.0\]"),
        ("binary", None, "A batch has no 'label'; its keys are label, timeseries"),
    ],
)
def test_labels_that_do_not_fit_are_refused(task: str, label: Any, text: str) -> None:
    """S38."""
    with pytest.raises(DataError, match=text):
        module(task).training_step({"timeseries": torch.zeros(2, 4, 3), "label": label}, 0)


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_label_counts_nowhere(series: Any, task: str) -> None:
    """S38: NaN is no label."""
    batch = torch.utils.data.default_collate(series(6, task=task))
    batch["label"] = batch["label"].float()
    tuned = module(task).eval()
    whole = {key: value[:4] for key, value in batch.items()}
    batch["label"][4:] = torch.nan
    assert float(tuned.validation_step(batch)) == pytest.approx(float(tuned.validation_step(whole)))


# --- logs (S40, S41, S45) ------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_metrics_of_the_guide_are_logged(
    trainer: Any, loader: Any, tmp_path: Path, task: str
) -> None:
    """S19, S40, S41, S45: of training, validation and test, once an epoch."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    stock = trainer(2, logger=logger)
    tuned = module(task, scheduler={"name": "step", "step_size": 1})
    stock.fit(tuned, loader(task=task), loader(12, task=task, seed=1))
    test = stock.test(tuned, loader(12, task=task, seed=2), verbose=False)[0]
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    counts = {name: sum(bool(row[name]) for row in lines) for name in lines[0]}
    metrics = {"loss", *({"rmse", "mae", "r2"} if task == "regression" else CLASSES)}
    for stage in ("train", "val"):
        assert {m: counts[f"{stage}/{m}"] for m in metrics} == dict.fromkeys(metrics, 2)
    assert counts["lr"] == 2
    assert counts["train/loss_step"] == 6
    assert {f"test/{m}" for m in metrics} <= set(test)


def test_metrics_are_computed_once_over_the_epoch(trainer: Any, loader: Any) -> None:
    """S40, S45: batches of any size give the same."""
    tuned = module()
    found = [
        trainer(1).test(tuned, loader(17, batch_size=size), verbose=False)[0] for size in (1, 8, 17)
    ]
    assert found[0] == pytest.approx(found[2], rel=1e-5, nan_ok=True)
    assert found[1] == pytest.approx(found[2], rel=1e-5, nan_ok=True)
    assert 0 < found[0]["test/auroc"] < 1


def test_a_fold_of_one_class_has_no_auroc(trainer: Any, series: Any) -> None:
    """S40: NaN, not 0, so that nothing is misled by it."""
    one: Any = [s for s in series(24) if s["label"] == 1]
    found = trainer(1).validate(module(), DataLoader(one, batch_size=4), verbose=False)[0]
    assert math.isnan(found["val/auroc"])
    assert math.isnan(found["val/auprc"])
    assert not math.isnan(found["val/accuracy"])


# --- imbalance (S42) -----------------------------------------------------------------------------


def test_class_weights_and_smoothing_reach_the_loss(series: Any) -> None:
    """S42: a list of weights, as torch's own loss takes them."""
    batch = torch.utils.data.default_collate(series(8))
    tuned = module(training={"class_weight": [1.0, 5.0], "label_smoothing": 0.1}).eval()
    logits = tuned(batch["timeseries"], batch["mask"])["logits"]
    total = functional.cross_entropy(
        logits, batch["label"], weight=torch.tensor([1.0, 5.0]), label_smoothing=0.1,
        reduction="sum",
    )  # fmt: skip
    assert float(tuned.validation_step(batch)) == pytest.approx(float(total.detach()) / 8)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_balanced_weights_come_from_the_training_labels(
    trainer: Any, series: Any, loader: Any, task: str
) -> None:
    """S42."""
    tuned = module(task, training={"class_weight": "balanced"})
    trainer(1, limit_train_batches=1).fit(tuned, loader(24, task=task, shuffle=True))
    labels = torch.stack([s["label"] for s in series(24, task=task)])
    if task == "multilabel":
        positives = labels.sum(0).double()
        expected = (24 - positives) / positives
    else:
        counts = torch.bincount(labels).double()
        expected = 24 / (len(counts) * counts)
    assert tuned.task.weight == pytest.approx(expected.tolist())  # type: ignore[attr-defined]


def test_balanced_weights_are_never_silently_absent(series: Any) -> None:
    """S42: without the training labels there is an error, not a loss without weights."""
    batch = torch.utils.data.default_collate(series(8))
    tuned = module(training={"class_weight": "balanced"})
    with pytest.raises(ConfigError, match=r"trainer\.fit first, or fit_labels"):
        tuned.validation_step(batch)
    tuned.fit_labels(batch["label"])
    assert math.isfinite(float(tuned.validation_step(batch)))


@pytest.mark.parametrize(
    ("task", "sections", "text"),
    [
        ("multilabel", {"training": {"label_smoothing": 0.1}}, "training.label_smoothing does not"),
        ("regression", {"training": {"class_weight": "balanced"}}, "training.class_weight does no"),
        ("regression", {"task": {"n_classes": 3}}, "task.n_classes does not go with a regression"),
        ("binary", {"task": {"loss": "huber"}}, "task.loss does not go with a binary task"),
        ("binary", {"training": {"class_weight": [1.0]}}, "class_weight must hold 2 finite number"),
        ("binary", {"training": {"class_weight": "balance"}}, "training.class_weight"),
        ("binary", {"task": {"n_classes": 3}}, "A binary task has two classes"),
    ],
)
def test_settings_that_do_not_go_with_the_task_are_refused(
    task: str, sections: dict[str, Any], text: str
) -> None:
    """S38, S42."""
    with pytest.raises(ConfigError, match=text):
        module(task, **sections)


def test_the_loss_of_regression_can_be_chosen(trainer: Any, loader: Any, series: Any) -> None:
    """S42: another loss, in deviations of the training labels."""
    tuned = module("regression", task={"loss": "mae", "standardize_labels": True})
    trainer(1, limit_train_batches=1).fit(tuned, loader(24, task="regression"))
    labels = torch.stack([s["label"] for s in series(24, task="regression")])
    batch = torch.utils.data.default_collate(series(24, task="regression"))
    predicted = tuned.eval()(batch["timeseries"], batch["mask"])["prediction"]
    expected = functional.l1_loss(predicted, labels) / labels.std(correction=0)
    assert float(tuned.validation_step(batch)) == pytest.approx(float(expected.detach()), rel=1e-4)


# --- optimizer, early stopping (S43, S46) --------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        {"name": "cosine", "T_max": 2},
        {"name": "step", "step_size": 1, "gamma": 0.5},
        {"name": "plateau", "mode": "min", "factor": 0.1, "patience": 10},
        {"name": "warmup_cosine", "warmup_epochs": 1, "max_epochs": 2, "eta_min": 1e-6},
        {"name": "linear", "max_epochs": 2},
        {"name": "constant"},
    ],
    ids=lambda section: section["name"],
)
def test_every_scheduler_runs_here_too(trainer: Any, loader: Any, section: dict[str, Any]) -> None:
    """S43, S46: with the learning rate that the configuration says."""
    tuned = module(optimizer={"name": "adamw", "lr": 1e-4}, scheduler=section)
    stock = trainer(1)
    stock.fit(tuned, loader(), loader(8))
    peak = 0.5e-4 if section["name"] == "warmup_cosine" else 1e-4
    assert float(stock.callback_metrics["lr"]) == pytest.approx(peak)


def test_early_stopping_follows_the_configuration(trainer: Any, loader: Any) -> None:
    """Patience and monitor; of an AUROC the largest is the best, and NaN is no better."""
    training = {"early_stopping_patience": 1, "early_stopping_monitor": "val/auroc"}
    (callback,) = module(training=training).configure_callbacks()
    assert (callback.monitor, callback.mode, callback.patience) == ("val/auroc", "max", 1)
    assert not callback.check_finite
    still = {"name": "sgd", "lr": 1e-12, "momentum": 0.0}
    stopped = trainer(9)
    stopped.fit(module(training=training, optimizer=still), loader(), loader(12))
    assert stopped.current_epoch == 2


@pytest.mark.parametrize(
    "training",
    [
        {"early_stopping_patience": 1, "early_stopping_monitor": None},
        {"early_stopping_patience": None},
        {},
    ],
)
def test_early_stopping_can_be_off(trainer: Any, loader: Any, training: dict[str, Any]) -> None:
    """A monitor of null included."""
    tuned = module(training=training)
    assert tuned.configure_callbacks() == []
    trainer(1).fit(tuned, loader(), loader(12))


# --- parts, files (S44) --------------------------------------------------------------------------


def test_parts_are_at_hand() -> None:
    """S44."""
    tuned = module()
    assert tuned.get_encoder() is tuned.backbone.encoder  # type: ignore[union-attr]
    assert tuned.get_task_head() is tuned.head
    late = module(encoder={"name": "linear"})
    with pytest.raises(ConfigError, match="number of features is not known"):
        late.get_task_head()


def test_a_random_encoder_that_is_frozen_is_told(trainer: Any, loader: Any, caplog: Any) -> None:
    """S35: the number of features is the data's where no file tells."""
    late = module(encoder={"name": "linear"})
    trainer(1).fit(late, loader())
    assert late.get_encoder().config.d_input == 3
    assert "The encoder has random weights and is frozen at first" in caplog.text


def test_a_fine_tuned_module_is_loaded_without_the_first_file(
    trainer: Any, loader: Any, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    """S34: a checkpoint suffices by itself, class weights included."""
    path = tmp_path / "encoder.pt"
    path.write_bytes(pretrained["pt"].read_bytes())
    tuned = module(
        encoder={}, training={"class_weight": "balanced"}, files={"checkpoint_path": path}
    )
    stock = trainer(1)
    stock.fit(tuned, loader())
    stock.save_checkpoint(tmp_path / "tuned.ckpt")
    path.unlink()
    again = FineTuneModule.load_from_checkpoint(tmp_path / "tuned.ckpt").eval()
    batch = next(iter(loader()))
    expected = tuned.eval()(batch["timeseries"], batch["mask"])
    assert torch.equal(again(batch["timeseries"], batch["mask"])["logits"], expected["logits"])
    assert again.validation_step(batch) == tuned.validation_step(batch)
    again.save_encoder(tmp_path / "tuned.pt")
    reused = module(encoder={}, files={"checkpoint_path": tmp_path / "tuned.pt"})
    assert change(reused.get_encoder(), copies(tuned.get_encoder())) == 0


def test_a_checkpoint_of_pretraining_is_none_of_fine_tuning(
    pretrained: dict[str, Path], trainer: Any, loader: Any
) -> None:
    """S34: as ckpt_path it says which argument it belongs to."""
    with pytest.raises(ConfigError, match=r"not written by FineTuneModule.*pretrain_checkpoint_pa"):
        trainer(1).fit(module(), loader(), ckpt_path=pretrained["ckpt"], weights_only=True)


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"ssl": {"name": "mae"}}, "ssl: unknown section"),
        ({"trainig": {}}, r"trainig: unknown section. Did you mean 'training'\?"),
        ({"training": {"freeze_encodr": True}}, r"training.freeze_encodr: .*'freeze_encoder'\?"),
        ({"task": {"head_typ": "mlp"}}, r"task.head_typ: unknown setting.*'head_type'\?"),
        ({"task": {"head_type": "mpl"}}, r"task: Unknown head 'mpl'.*Did you mean 'mlp'\?"),
        ({"task": {"task_type": "binray"}}, r"task: Unknown task 'binray'.*'binary'\?"),
        ({"task": {"hidden": [3]}}, r"task.hidden: unknown setting.*'hidden_dims'\?"),
        ({"task": {"pooling": "men"}}, "Unknown pooling 'men'"),
        ({"encoder": {**LINEAR, "n_heads": 2}}, "Unknown setting of LinearConfig 'n_heads'"),
    ],
)
def test_whatever_is_unknown_is_named(sections: dict[str, Any], text: str) -> None:
    """S48: in every section."""
    with pytest.raises(ConfigError, match=text):
        module(**sections)


def test_a_configuration_without_a_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="task: the section is missing; it needs task_type"):
        FineTuneModule({"encoder": LINEAR})


# --- two processes (S20) -------------------------------------------------------------------------

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler
from molfun.lightning import FineTuneModule, SSLPretrainModule

torch.set_num_threads(1)
out, devices = sys.argv[1], int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
values = 5 + torch.randn(16, 6, 3, generator=generator)
data = [{"timeseries": v, "label": (v.mean() > 5).long()} for v in values]

class Watch(pl.Callback):
    def on_train_start(self, trainer, module):
        self.start = [p.detach().clone() for p in module.get_encoder().parameters()]
        self.moved = []
    def on_train_epoch_end(self, trainer, module):
        pairs = zip(module.get_encoder().parameters(), self.start)
        self.moved.append(max(float((p - s).detach().abs().max()) for p, s in pairs))

def fit(module, epochs, callbacks=()):
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=devices, callbacks=list(callbacks),
        strategy="ddp" if devices > 1 else "auto", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
        accumulate_grad_batches=2, num_sanity_val_steps=0, use_distributed_sampler=False,
    )
    # Lightning's own sampler would shuffle, and a step of one process see other series
    share = DistributedSampler(
        data, num_replicas=devices, rank=trainer.global_rank, shuffle=False
    )
    loader = DataLoader(data, batch_size=4 // devices, sampler=share)
    trainer.fit(module, loader, loader)
    return trainer

pl.seed_everything(0)
encoder = {"name": "linear", "d_model": 8, "dropout": 0.0}
optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
ssl = SSLPretrainModule({"encoder": encoder, "ssl": {"name": "jepa", "n_blocks": 1}})
fit(ssl, 1)
pl.seed_everything(0)
tuned = FineTuneModule({
    "encoder": {**encoder, "d_input": 3},
    "task": {"task_type": "binary", "head_type": "linear"},
    "training": {"unfreeze_epoch": 1}, "optimizer": optimizer,
})
watch = Watch()
trainer = fit(tuned, 3, [watch])
torch.save({
    "tuned": tuned.state_dict(), "teacher": ssl.objective.resume_state(), "ssl": ssl.state_dict(),
    "moved": watch.moved, "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
}, f"{out}/{devices}-{trainer.global_rank}.pt")
"""

FORKS = """
import os, runpy, sys, traceback
import lightning.pytorch, molfun.lightning

script, out, port = sys.argv[1:]
children = []
for devices, rank in ((1, 0), (2, 0), (2, 1)):
    children.append(os.fork())
    if children[-1] == 0:
        try:
            if devices > 1:  # so Lightning starts no processes itself, which would import all again
                os.environ.update(LOCAL_RANK=str(rank), MASTER_PORT=port)
            sys.argv = [script, out, str(devices)]
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.mark.slow
def test_two_processes_stay_bit_identical_and_give_what_one_gives(tmp_path: Path) -> None:
    """S20, S37: with Lightning's own DDP, the encoder unfrozen after DDP has looked."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SLURM"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    warm.run("-c", FORKS, script, tmp_path, _free_port(), env=environment, check=True)
    alone, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    for part in ("tuned", "teacher", "ssl"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    assert first["moved"][0] == 0
    assert 0 < first["moved"][1] < first["moved"][2]
    for name, tensor in alone["tuned"].items():
        torch.testing.assert_close(first["tuned"][name], tensor, rtol=1e-4, atol=1e-5)
    assert first["metrics"]["val/auroc"] == pytest.approx(alone["metrics"]["val/auroc"])
    assert first["metrics"]["val/loss"] == pytest.approx(alone["metrics"]["val/loss"], rel=1e-4)
    agreed = {**second["metrics"], **_steps(first)}
    assert first["metrics"] == pytest.approx(agreed, nan_ok=True)


def _steps(result: dict[str, Any]) -> dict[str, float]:
    """Losses of single steps, which each process has its own of."""
    return {k: v for k, v in result["metrics"].items() if k.endswith("_step")}
