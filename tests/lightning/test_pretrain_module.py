"""What the guide promises of pre-training under Lightning (S1 to S21)."""

from __future__ import annotations

import csv
import importlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pl = pytest.importorskip("lightning.pytorch", reason="needs pip install 'molfun[lightning]'")

from molfun.backbones.timeseries import TimeSeriesBackbone  # noqa: E402
from molfun.errors import (  # noqa: E402
    ConfigError,
    DataError,
    MissingDependencyError,
    UnsafeFileError,
)
from molfun.lightning import SSLPretrainModule  # noqa: E402
from molfun.lightning.data import rows  # noqa: E402
from molfun.objectives.base import Objective  # noqa: E402
from molfun.training.selfsupervised import ObjectiveRunner  # noqa: E402

ENCODERS = {
    "transformer": {"name": "transformer", "d_model": 16, "n_heads": 2, "n_layers": 1},
    "gru_d": {"name": "gru_d", "d_model": 16},
    "linear": {"name": "linear", "d_model": 16},
}
METRICS = {
    "mae": {"mse", "mae", "r2"},
    "contrastive": {"accuracy"},
    "jepa": {"cosine", "target_std"},
}


def config(ssl: str = "mae", encoder: str = "transformer", **sections: Any) -> dict[str, Any]:
    return {"encoder": dict(ENCODERS[encoder]), "ssl": {"name": ssl}, **sections}


def with_width(**sections: Any) -> SSLPretrainModule:
    torch.manual_seed(0)
    settings = config(**sections)
    settings["encoder"]["d_input"] = 3
    return SSLPretrainModule(settings)


class SeriesModule(pl.LightningDataModule):  # type: ignore[misc,name-defined]
    """A stock data module; with `n_features` it tells the number of features."""

    def __init__(self, loader: Any, **stated: int) -> None:
        super().__init__()
        self.loader = loader
        for name, value in stated.items():
            setattr(self, name, value)

    def train_dataloader(self) -> Any:
        return self.loader(24, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader(12, seed=1)


@pytest.fixture
def logged(trainer: Any, loader: Any, tmp_path: Path) -> Any:
    """Names and values in the CSV log of a run: ``logged(module, epochs)``."""
    from lightning.pytorch.loggers import CSVLogger

    def run(module: Any, epochs: int = 1, **settings: Any) -> dict[str, list[float]]:
        logger = CSVLogger(tmp_path, name="csv")
        stock = trainer(epochs, logger=logger, **settings)
        stock.fit(module, loader(24), loader(12, seed=1))
        columns: dict[str, list[float]] = {}
        with (Path(logger.log_dir) / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value:
                        columns.setdefault(name, []).append(float(value))
        return columns

    return run


# --- agnostic, from configuration (S1 to S4, S11) ------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("ssl", METRICS)
def test_any_encoder_trains_on_any_objective(
    trainer: Any, loader: Any, encoder: str, ssl: str
) -> None:
    """S1, S2, S4: a stock Trainer with a data module; every parameter of the encoder moves."""
    torch.manual_seed(0)
    module = SSLPretrainModule(config(ssl, encoder))
    stock = trainer(1)
    before: dict[str, torch.Tensor] = {}

    class Remember(pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_start(self, *_: Any) -> None:
            before.update({n: p.clone() for n, p in module.get_encoder().named_parameters()})

    stock.callbacks.append(Remember())
    stock.fit(module, datamodule=SeriesModule(loader))
    moved = {n: bool((p != before[n]).any()) for n, p in module.get_encoder().named_parameters()}
    assert moved
    assert all(moved.values()), moved
    assert {f"val/{m}" for m in METRICS[ssl]} <= set(stock.callback_metrics)


def test_the_configuration_of_the_guide_runs_as_it_stands(trainer: Any, loader: Any) -> None:
    """S3, S11: the sections of the guide, as its YAML has them."""
    import yaml

    text = """
    encoder:
      name: transformer
      d_input: 35
      d_model: 128
    ssl:
      name: mae
      mask_ratio: 0.15
    optimizer:
      name: adamw
      lr: 1.0e-3
      weight_decay: 0.01
    scheduler:
      name: warmup_cosine
      warmup_epochs: 10
      max_epochs: 100
    """
    module = SSLPretrainModule(yaml.safe_load(text))
    trainer(1).fit(module, loader(8, features=35, length=4))
    assert module.get_encoder().config.d_model == 128


class Section(Mapping[str, Any]):
    """A mapping that is no dict, as OmegaConf's are."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        value = self.content[key]
        return Section(value) if isinstance(value, dict) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


def test_a_configuration_may_be_any_mapping() -> None:
    """S3: what is kept of it is plain, so that a checkpoint holds nothing else."""
    module = SSLPretrainModule(Section(config("jepa")))
    assert module.settings.plain == config("jepa")
    assert type(module.settings.plain["encoder"]) is dict


def test_an_omegaconf_configuration_is_taken() -> None:
    """S3: a DictConfig, interpolations resolved."""
    omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is optional")
    settings = config(optimizer={"lr": 0.1})
    settings["ssl"]["mask_ratio"] = "${optimizer.lr}"
    module = SSLPretrainModule(omegaconf.OmegaConf.create(settings))
    assert module.settings.plain["ssl"] == {"name": "mae", "mask_ratio": 0.1}
    assert type(module.settings.plain["ssl"]) is dict


@pytest.mark.parametrize("stated", [{}, {"n_features": 3}])
def test_the_number_of_features_is_the_datas(
    trainer: Any, loader: Any, stated: dict[str, int]
) -> None:
    """S11: ``n_features`` of the data module where it has one, else the first batch."""
    module = SSLPretrainModule(config())
    trainer(1).fit(module, datamodule=SeriesModule(loader, **stated))
    assert module.get_encoder().config.d_input == 3


def test_a_data_module_that_states_another_number_is_believed(trainer: Any, loader: Any) -> None:
    """S11: and the first batch that differs is refused."""
    module = SSLPretrainModule(config())
    with pytest.raises(DataError, match=r"shape \(8, 3\); this model takes \(time, 4\)"):
        trainer(1).fit(module, datamodule=SeriesModule(loader, n_features=4))


# --- methods (S5 to S10) -------------------------------------------------------------------------


def test_save_encoder_writes_plain_tensors_that_a_backbone_reads(
    pretrained: dict[str, Path], series: Any
) -> None:
    """S5, S21: the encoder alone, with its settings and the scale of its input."""
    content = torch.load(pretrained["pt"], weights_only=True)
    assert set(content) == {
        "encoder_state_dict", "encoder_config", "version", "ssl_name", "input_mean", "input_std",
        "inputs_fitted",
    }  # fmt: skip
    assert content["version"] == 3
    assert content["ssl_name"] == "mae"
    assert content["encoder_config"]["name"] == "transformer"
    assert content["encoder_config"]["d_input"] == 3
    module = SSLPretrainModule.load_from_checkpoint(pretrained["ckpt"]).eval()
    backbone = TimeSeriesBackbone(weights=pretrained["pt"]).eval()
    batch = {"timeseries": series(1)[0]["timeseries"][None]}
    assert torch.equal(backbone(batch).single, module.backbone(batch).single)


def test_get_encoder_gives_it_once_the_data_is_known() -> None:
    """S6."""
    module = SSLPretrainModule(config())
    with pytest.raises(ConfigError, match=r"number of features is not known.*encoder\.d_input"):
        module.get_encoder()
    assert with_width().get_encoder().config.d_input == 3


@pytest.mark.parametrize("ssl", METRICS)
def test_forward_gives_loss_and_metrics(loader: Any, ssl: str) -> None:
    """S7."""
    module = with_width(ssl=ssl)
    batch = next(iter(loader()))
    loss, metrics = module(batch["timeseries"], batch["mask"])
    assert loss.shape == ()
    assert set(metrics) == METRICS[ssl]
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in module.get_encoder().parameters())


def test_steps_run_without_a_trainer(loader: Any) -> None:
    """S8, S9: training draws new masks, validation the same ones, whatever the random state."""
    module, batch = with_width(), next(iter(loader()))
    first, second = module.training_step(batch, 0), module.training_step(batch, 1)
    assert first.requires_grad
    assert first != second
    losses = [float(module.validation_step(batch, i)) for i in range(2)]
    assert losses[0] == losses[1]
    part = {key: value[2:3] for key, value in batch.items()}
    result = ObjectiveRunner(
        module.backbone, module.objective, device=torch.device("cpu")
    ).evaluate([rows(batch)[2:3]])
    assert float(module.validation_step(part, 0)) == pytest.approx(result.loss)


def test_padding_is_cut_off_before_masks_are_drawn(loader: Any) -> None:
    """S8: a padded batch gives the loss of its series alone."""
    module, batch = with_width(), next(iter(loader(2)))
    alone = float(module.validation_step(batch))
    extra = torch.full((2, 5, 3), 1e6)
    padded = {
        "timeseries": torch.cat([batch["timeseries"], extra], 1),
        "mask": torch.cat([batch["mask"], extra > 0], 1),
        "padding_mask": torch.arange(13).expand(2, -1) < 8,
    }
    assert float(module.validation_step(padded)) == pytest.approx(alone, rel=1e-5)
    padded["padding_mask"] = padded["padding_mask"].flip(1)
    with pytest.raises(DataError, match="series 0 of a batch must be True first and False behind"):
        module.validation_step(padded)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"x": torch.zeros(1)}, r"dict with 'timeseries'; found the keys \['x'\]"),
        ([torch.zeros(1)], "dict with 'timeseries'; found list"),
        ({"timeseries": torch.zeros(2, 3)}, r"\(batch, time, features\), got \(2, 3\)"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch: Any, text: str) -> None:
    """S8."""
    with pytest.raises(DataError, match=text):
        with_width().training_step(batch, 0)


# --- optimizers and schedulers (S10, S17, S18) ---------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"name": "adam", "lr": 1e-3, "weight_decay": 0.0}, torch.optim.Adam),
        ({"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}, torch.optim.AdamW),
        ({"name": "sgd", "lr": 1e-2, "weight_decay": 1e-4, "momentum": 0.8}, torch.optim.SGD),
    ],
)
def test_optimizers_of_the_guide(settings: dict[str, Any], kind: type) -> None:
    """S10, S17: the class and its options; encoder and objective are in it once."""
    module = with_width(optimizer=settings)
    optimizer = module.configure_optimizers()
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {settings["lr"]}
    if "momentum" in settings:
        assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    inside = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(inside) == sorted(id(p) for p in module.parameters())


def test_biases_and_norms_take_no_weight_decay() -> None:
    """S17: vectors have none, matrices what was asked for."""
    groups = with_width(optimizer={"weight_decay": 0.3}).configure_optimizers().param_groups
    found = {(p.ndim > 1, group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {(True, 0.3), (False, 0.0)}


@pytest.mark.parametrize(
    ("section", "rates"),
    [
        ({"name": "cosine", "T_max": 4, "eta_min": 0.0}, [1.0, 0.853553, 0.5, 0.146447]),
        ({"name": "step", "step_size": 2, "gamma": 0.1}, [1.0, 1.0, 0.1, 0.1]),
        ({"name": "warmup_cosine", "warmup_epochs": 1, "max_epochs": 3, "eta_min": 0.2},
         [0.5, 1.0, 0.6, 0.2]),
    ],
)  # fmt: skip
def test_schedulers_change_the_rate_once_an_epoch(
    logged: Any, section: dict[str, Any], rates: list[float]
) -> None:
    """S16, S18: the logged rate of each epoch, in parts of the peak of 1; eta_min is absolute."""
    module = with_width(optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0}, scheduler=section)
    module.on_after_backward = module.zero_grad  # the rates are what matters
    assert logged(module, 4)["lr"] == pytest.approx(rates, abs=1e-6)


def test_plateau_watches_the_validation_loss(logged: Any) -> None:
    """S18: a loss that stays lowers the rate after the patience."""
    section = {"name": "plateau", "mode": "min", "factor": 0.1, "patience": 1}
    module = with_width(scheduler=section, optimizer={"lr": 1e-3})
    plan = module.configure_optimizers()["lr_scheduler"]
    assert plan["monitor"] == "val/loss"
    assert plan["interval"] == "epoch"
    module.on_after_backward = module.zero_grad
    rates = logged(module, 5)["lr"]
    assert rates[0] == pytest.approx(1e-3)
    assert min(rates) == pytest.approx(1e-4)


# --- logs (S12 to S16, S19) ----------------------------------------------------------------------


@pytest.mark.parametrize("ssl", METRICS)
def test_loss_and_metrics_are_logged_by_step_and_epoch(logged: Any, ssl: str) -> None:
    """S12 to S15: three steps an epoch; everything else once."""
    columns = logged(with_width(ssl=ssl), 2)
    assert len(columns["train/loss_step"]) == 6
    expected = {f"{s}/{m}" for s in ("train", "val") for m in {"loss", *METRICS[ssl]}}
    assert expected <= set(columns)
    assert all(len(columns[name]) == 2 for name in expected)
    assert "lr" not in columns


def test_values_of_an_epoch_are_not_means_of_means(trainer: Any, loader: Any) -> None:
    """S13, S15: batches of 8, 8 and 1 give what one batch of all gives."""
    module = with_width()
    found = [
        trainer(1).validate(module, loader(17, batch_size=size), verbose=False)[0]
        for size in (8, 17)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert set(found[0]) == {"val/loss", "val/mse", "val/mae", "val/r2"}


def test_the_loss_of_a_training_epoch_is_over_all_that_was_hidden(
    trainer: Any, loader: Any
) -> None:
    """S12, S14: the sum of all errors over their number."""
    module = with_width(optimizer={"name": "sgd", "lr": 1e-12, "momentum": 0.0})
    totals, counts = [], []
    forward = Objective.__call__

    def spy(self: Any, *arguments: Any) -> Any:
        output = forward(self, *arguments)
        totals.append(float(output.total.detach()))
        counts.append(output.n_labels)
        return output

    stock = trainer(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module._need_objective()), "__call__", spy)
        stock.fit(module, loader(17))
    assert len(set(counts)) > 1
    mean = sum(totals) / sum(counts)
    assert float(stock.callback_metrics["train/loss"]) == pytest.approx(mean, rel=1e-5)
    assert float(stock.callback_metrics["train/mse"]) == pytest.approx(mean, rel=1e-5)
    assert stock.callback_metrics["train/loss_epoch"] == stock.callback_metrics["train/loss"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard and protobuf
def test_names_arrive_in_tensorboard(trainer: Any, loader: Any, tmp_path: Path) -> None:
    """S19: through Lightning's own logger, with the learning rates of its own callback."""
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    module = with_width(scheduler={"name": "cosine", "T_max": 2})
    stock = trainer(2, logger=logger, callbacks=[LearningRateMonitor()])
    stock.fit(module, loader(), loader(12))
    events = EventAccumulator(logger.log_dir).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "train/loss_step", "val/loss", "val/r2", "train/r2", "lr"} <= names
    assert len(events.Scalars("train/loss")) == 2
    assert any(name.startswith("lr-AdamW") for name in names)


# --- the teacher (JEPA) --------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4), (3, 2)])
def test_a_teacher_follows_once_an_optimizer_step(
    trainer: Any, loader: Any, accumulate: int, steps: int
) -> None:
    """Three batches an epoch, two epochs; the last window of an epoch may be short."""
    module = with_width(ssl="jepa")
    progress: list[float] = []
    module._need_objective().after_step = progress.append  # type: ignore[method-assign]
    trainer(2, accumulate_grad_batches=accumulate).fit(module, loader(24))
    assert progress == pytest.approx([(i + 1) / steps for i in range(steps)])


def test_a_teacher_sees_the_scale_of_the_data_and_survives_a_checkpoint(
    trainer: Any, loader: Any, tmp_path: Path
) -> None:
    """S21: it is part of the checkpoint, with what it standardises by."""
    module = SSLPretrainModule(config("jepa"))
    stock = trainer(1)
    stock.fit(module, loader())
    stock.save_checkpoint(tmp_path / "last.ckpt")
    ours: Any = module.objective
    assert torch.equal(ours._teacher[0].input_mean, module.backbone.input_mean)
    assert module.backbone.input_mean.mean() > 3
    again: Any = SSLPretrainModule.load_from_checkpoint(tmp_path / "last.ckpt").objective
    for name, tensor in ours.resume_state().items():
        assert torch.equal(again.resume_state()[name], tensor), name
    followed = ours.resume_state()["encoder.embedding.values.weight"]
    assert not torch.equal(followed, module.get_encoder().embedding.values.weight)


def test_a_run_goes_on_from_a_checkpoint(trainer: Any, loader: Any, tmp_path: Path) -> None:
    """S4: the teacher counts on, and optimizer and scheduler are where they were."""
    section = {"name": "step", "step_size": 1, "gamma": 0.5}
    module = SSLPretrainModule(config("jepa", scheduler=section))
    stock = trainer(1)
    stock.fit(module, loader())
    stock.save_checkpoint(tmp_path / "last.ckpt")
    resumed = SSLPretrainModule(config("jepa", scheduler=section))
    second = trainer(2)
    progress: list[float] = []
    original = SSLPretrainModule.on_train_start

    def watch(self: Any) -> None:
        original(self)
        self.objective.after_step = progress.append

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSLPretrainModule, "on_train_start", watch)
        second.fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert progress == pytest.approx([4 / 6, 5 / 6, 1.0])
    assert second.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


# --- checkpoints (S21) ---------------------------------------------------------------------------


def test_a_checkpoint_holds_the_encoder_once_and_nothing_but_plain_values(
    pretrained: dict[str, Path],
) -> None:
    """S21: and all settings of the encoder, also those that were left out."""
    content = torch.load(pretrained["ckpt"], weights_only=True)
    module = SSLPretrainModule.load_from_checkpoint(pretrained["ckpt"])
    expected = sum(p.numel() for p in module.get_encoder().parameters())
    decoder = sum(p.numel() for p in module.objective.parameters())
    scale = 3 + 3 + 1
    assert sum(t.numel() for t in content["state_dict"].values()) == expected + decoder + scale
    assert content["hyper_parameters"]["config"]["encoder"]["dropout"] == 0.1


def test_loading_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    """S21: an object of any class in the file is refused by torch before it is made."""
    import pickle

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Path("x")}, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        SSLPretrainModule.load_from_checkpoint(path)
    from molfun.lightning import FineTuneModule

    with pytest.raises(UnsafeFileError, match="holds more than tensors and plain values"):
        FineTuneModule({"task": {"task_type": "binary"}}, pretrain_checkpoint_path=path)


# --- the scale of the input ----------------------------------------------------------------------


def test_the_scale_is_that_of_all_training_data(trainer: Any, series: Any, loader: Any) -> None:
    """Observed values of all 24 series count, whatever limit_train_batches says."""
    module = SSLPretrainModule(config())
    trainer(1, limit_train_batches=1).fit(module, loader(24, shuffle=True))
    values = torch.cat([s["timeseries"].double() for s in series(24)])
    mask = torch.cat([s["mask"] for s in series(24)])
    for i in range(3):
        observed = values[mask[:, i], i]
        assert float(module.backbone.input_mean[i]) == pytest.approx(float(observed.mean()))
        std = float(observed.std(correction=0))
        assert float(module.backbone.input_std[i]) == pytest.approx(std)


def test_values_stay_as_they_are_where_that_is_asked_for(trainer: Any, loader: Any) -> None:
    module = SSLPretrainModule(config(data={"standardize": False}))
    trainer(1).fit(module, loader())
    assert not module.backbone.inputs_fitted
    assert module.backbone.input_mean.tolist() == [0, 0, 0]


def test_looking_at_the_data_leaves_the_random_state_alone(trainer: Any, loader: Any) -> None:
    """The same masks are drawn with and without a pass for the scale."""
    drawn = []
    for standardize in (True, False):
        module = with_width(data={"standardize": standardize})
        torch.manual_seed(5)
        module.on_train_start = lambda: drawn.append(torch.rand(1))  # type: ignore[method-assign]
        trainer(1, limit_train_batches=1).fit(module, datamodule=SeriesModule(loader))
    assert drawn[0] == drawn[1]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"enconder": {}}, r"enconder: unknown section. Did you mean 'encoder'\?"),
        ({"task": {"task_type": "binary"}}, "task: unknown section"),
        ({"encoder": {"d_modle": 8}}, r"encoder: Unknown setting of TransformerConfig 'd_modle'.*"
         r"Did you mean 'd_model'\?"),
        ({"encoder": {"name": "transfomer"}}, r"Unknown encoder 'transfomer'.*'transformer'\?"),
        ({"encoder": {"n_heads": 3}}, "d_model=64 must be a multiple of n_heads=3"),
        ({"ssl": {"name": "mea"}}, r"ssl: Unknown objective 'mea'.*Did you mean 'mae'\?"),
        ({"ssl": {"name": "mae", "mask_rate": 0.2}},
         r"ssl: Unknown setting of MAEObjective 'mask_rate'.*Did you mean 'mask_ratio'\?"),
        ({"ssl": {"mask_ratio": 0.2}}, "ssl: name is missing; known: .*mae"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: unknown setting"),
        ({"optimizer": {"wight_decay": 1}}, r"optimizer.wight_decay: .*'weight_decay'\?"),
        ({"optimizer": {"name": "adamww"}}, r"optimizer: Unknown optimizer 'adamww'.*'adamw'\?"),
        ({"scheduler": {"name": "cosin", "T_max": 1}}, r"scheduler: Unknown scheduler 'cosin'"),
        ({"scheduler": {"name": "cosine", "t_max": 1}}, r"scheduler: .*'t_max'"),
        ({"scheduler": {"T_max": 1}}, "scheduler: name is missing"),
        ({"data": {"standardise": True}}, r"data.standardise: .*'standardize'\?"),
        ({"training": {"max_epoch": 3}}, r"training.max_epoch: .*'max_epochs'\?"),
        ({"optimizer": [1]}, "optimizer must hold `name: value` lines"),
    ],
)  # fmt: skip
def test_whatever_is_unknown_is_named_with_the_nearest(wrong: dict[str, Any], text: str) -> None:
    """S3, S11: in every section."""
    with pytest.raises(ConfigError, match=text):
        SSLPretrainModule({"ssl": {"name": "mae"}, **wrong})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SSLPretrainModule({"encoder": {"d_modle": 1}, "optimizer": {"lrr": 1}})
    assert all(word in str(caught.value) for word in ("'d_modle'", "optimizer.lrr", "ssl: the sec"))


def test_an_objective_for_sequences_is_refused() -> None:
    """S2."""
    with pytest.raises(ConfigError, match=r"'masked_lm' needs a language model; Time series has"):
        with_width(ssl="masked_lm")


def test_the_section_training_becomes_arguments_of_a_trainer() -> None:
    module = SSLPretrainModule(config(training={"max_epochs": 3, "batch_size": 4, "precision": 32}))
    assert module.trainer_options == {"max_epochs": 3, "precision": 32}


def test_without_lightning_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "molfun.lightning")
    with pytest.raises(MissingDependencyError, match=r"pip install 'molfun\[lightning\]'"):
        importlib.import_module("molfun.lightning")


def test_a_loss_that_is_not_defined_is_nan(trainer: Any, loader: Any) -> None:
    """One series has no other to tell it from."""
    found = trainer(1).validate(with_width(ssl="contrastive"), loader(1), verbose=False)[0]
    assert math.isnan(found["val/loss"])
    assert math.isnan(found["val/accuracy"])
