"""Base class of both modules: an encoder, one optimizer, and metrics over whole epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import nn

from molfun._io import save_torch
from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.backbones.timeseries.encoders import BaseEncoder
from molfun.backbones.timeseries.weights import ENCODER_VERSION, SCALE
from molfun.errors import ConfigError
from molfun.lightning.data import n_features, rows, series_of, training_batches
from molfun.models.series_config import FinetuneConfig, PretrainConfig, build_scheduler
from molfun.nn.optimizers import averages_weights, build_optimizer
from molfun.nn.param_groups import collect, for_optimizer
from molfun.parallel.ranks import Ranks
from molfun.training.inputs import as_inputs
from molfun.training.runner import Runner

STATE = "molfun"
"""Key in a checkpoint for state that is not in the weights."""


class TimeSeriesModule(LightningModule):
    """An encoder under a Lightning Trainer.

    Parameters
    ----------
    settings
        The checked configuration.
    """

    evaluation: ClassVar[type[Any]]
    """Class of the results that steps collect for the metrics of their epoch."""

    def __init__(self, settings: PretrainConfig | FinetuneConfig) -> None:
        super().__init__()
        self.settings = settings
        self.backbone: TimeSeriesBackbone | None = None
        self._seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        self.save_hyperparameters({"config": settings.plain})

    @property
    def trainer_options(self) -> dict[str, Any]:
        """Arguments for ``lightning.pytorch.Trainer`` from the section ``training``."""
        return self.settings.training.trainer_options

    # --- parts ---------------------------------------------------------------------------------

    def _build(self, d_input: int) -> None:
        """Build all modules for inputs with `d_input` features."""
        raise NotImplementedError

    def _need_backbone(self) -> TimeSeriesBackbone:
        if self.backbone is None:
            raise ConfigError(
                "The number of features is not known before the module has seen data. Set "
                "encoder.d_input, or call this after trainer.fit has begun."
            )
        return self.backbone

    def get_encoder(self) -> BaseEncoder:
        """Return the encoder.

        Raises
        ------
        ConfigError
            If there is none yet, because the number of features is not known.
        """
        return self._need_backbone().encoder

    def save_encoder(self, path: str | Path) -> None:
        """Write the encoder for `FineTuneModule` and ``TimeSeriesBackbone(weights=...)``.

        The file holds a dict that loads with ``weights_only=True``: ``encoder_state_dict``,
        ``encoder_config`` (name and settings), ``version``, ``ssl_name``, and mean and standard
        deviation of the features (``input_mean``, ``input_std``, ``inputs_fitted``).

        Parameters
        ----------
        path
            File to write, by convention with the suffix ``.pt``.
        """
        backbone = self._need_backbone()
        weights = {n: t.detach().cpu() for n, t in backbone.encoder.state_dict().items()}
        scale = {name: getattr(backbone, name).detach().cpu() for name in SCALE}
        content = {
            "encoder_state_dict": weights,
            "encoder_config": backbone.config_dict["encoder"],
            "version": ENCODER_VERSION,
            "ssl_name": self._ssl_name(),
            **scale,
        }
        save_torch(path, content)

    def _ssl_name(self) -> str | None:
        return None

    def setup(self, stage: str) -> None:
        """Build the modules and learn the scale of the input, the first time only."""
        if self.backbone is None and stage == "fit":
            self._build(n_features(self.trainer))
        backbone = self.backbone
        if backbone is None:  # `trainer.test(ckpt_path=...)` loads a checkpoint after this hook
            return
        if stage == "fit" and backbone.standardize and not backbone.inputs_fitted:
            self._take_scale(backbone)

    def _take_scale(self, backbone: TimeSeriesBackbone) -> None:
        """Estimate the scale of the input; all processes take that of the first."""
        with training_batches(self.trainer) as batches:
            backbone.fit_inputs(sample for batch in batches for sample in rows(batch))
        # a data module may draw its own samples in each process
        own = {name: getattr(backbone, name) for name in SCALE}
        for name, tensor in self._ranks().gather(own)[0].items():
            own[name].copy_(tensor)

    def _ranks(self) -> Ranks:
        if self._trainer is None:
            return Ranks()
        return Ranks(self.trainer.global_rank, self.trainer.world_size)

    # --- optimizer -----------------------------------------------------------------------------

    def _trained(self) -> Iterable[tuple[str, str, nn.Parameter]]:
        """Yield group, name and tensor of each parameter that ever trains."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if one is configured, the scheduler, stepped once per epoch.

        Biases, norms and other vectors get no weight decay. The scheduler ``plateau`` watches
        ``val/loss``.
        """
        settings = self.settings.optimizer
        if averages_weights(settings.name):
            raise ConfigError(
                f"A Lightning Trainer does not ask {settings.name} for its averaged weights, so it "
                f"would validate others. Use adamw here, or molfun fine-tune."
            )
        entries = ((group, settings.lr, name, p) for group, name, p in self._trained())
        groups = for_optimizer(collect(entries), settings.weight_decay)
        for number, group in enumerate(groups):
            # Lightning's LearningRateMonitor refuses two groups of one name, and each has two: with
            # and without weight decay
            group["name"] = f"{group['name']}_{number}"
        optimizer = build_optimizer(groups=groups, **settings.model_dump())
        if self.settings.scheduler is None:
            return optimizer
        scheduler = build_scheduler(self.settings.scheduler, optimizer)
        plan = {"scheduler": scheduler, "interval": "epoch", "frequency": 1}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            plan["monitor"] = "val/loss"
        return {"optimizer": optimizer, "lr_scheduler": plan}

    # --- steps ---------------------------------------------------------------------------------

    def forward(
        self,
        timeseries: torch.Tensor,
        mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> Any:
        """Run encoder and head or objective on a batch.

        Parameters
        ----------
        timeseries
            (batch, time, features).
        mask
            The same shape, True where a value was observed; None takes every value that is not
            NaN.
        padding_mask
            (batch, time), False for padding; None means no padding.

        Returns
        -------
        dict or tuple
            `FineTuneModule` returns a dict with ``logits`` and ``probs`` of the classes, or with
            ``prediction`` in the units of the labels; `SSLPretrainModule` loss and metrics.
        """
        return self._output({"timeseries": timeseries, "mask": mask, "padding_mask": padding_mask})

    def _output(self, batch: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _runner(self) -> Runner:
        """Return the runner that computes outputs, loss and metrics of a batch."""
        raise NotImplementedError

    def _for_runner(self, batch: Mapping[str, Any]) -> Any:
        """Return a batch of a loader in the form that the runner takes."""
        raise NotImplementedError

    def _evaluated(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
        """Return the mean loss of a batch with its graph, and its part of the epoch's metrics."""
        inputs, runner = as_inputs(self._for_runner(batch)), self._runner()
        outputs = runner.outputs(inputs)
        total, count = runner.loss(inputs, outputs)
        result = runner.empty()
        runner.add(result, inputs, outputs)
        return total / max(count, 1), result

    def training_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> torch.Tensor:
        """Return the mean loss of a batch."""
        del batch_idx
        loss, result = self._evaluated(batch)
        self._seen["train"].append(result)
        self._log_step(loss, len(series_of(batch)))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> torch.Tensor:
        """Return the mean loss of a batch."""
        del batch_idx
        return self._measure("val", batch)

    def _measure(self, stage: str, batch: Mapping[str, Any]) -> torch.Tensor:
        result = self._runner().evaluate([self._for_runner(batch)])
        self._seen[stage].append(result)
        return torch.tensor(result.loss)

    # --- epochs --------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Forget the results of the previous epoch, and log a scheduled learning rate."""
        self._seen["train"] = []
        if self.trainer.lr_scheduler_configs:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log("lr", rate, on_step=False, on_epoch=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Log metrics over all samples of the epoch."""
        self._log_evaluation("train")

    def on_validation_epoch_start(self) -> None:
        """Forget the results of the previous validation."""
        self._seen["val"] = []

    def on_validation_epoch_end(self) -> None:
        """Log metrics over the validation set."""
        self._log_evaluation("val")

    def _log_evaluation(self, stage: str) -> None:
        # sums and predictions are joined before metrics are computed: the mean of metrics over
        # batches or processes would be another number for AUROC, F1 or R2
        own = self.evaluation.joined(self._seen[stage])
        whole = self.evaluation.joined(self._ranks().gather(own))
        self._log_epoch(stage, {"loss": whole.loss, **self._runner().metrics(whole)})

    # --- logs ----------------------------------------------------------------------------------

    def _log_step(self, loss: torch.Tensor, size: int) -> None:
        """Log the loss of a training step as ``train/loss_step``."""
        if self._trainer is not None:
            self.log(
                "train/loss_step",
                loss.detach(),
                on_step=True,
                on_epoch=False,
                prog_bar=True,
                batch_size=size,
            )

    def _log_epoch(self, stage: str, values: Mapping[str, float]) -> None:
        """Log values of a whole epoch, which are the same in every process."""
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, sync_dist=True, prog_bar=name == "loss")
        if stage == "train":
            # the name that Lightning gives a loss logged by step and by epoch, for callbacks that
            # monitor it; not for loggers, which already have train/loss
            self.log("train/loss_epoch", values["loss"], sync_dist=True, logger=False)

    # --- checkpoints ---------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **options: Any) -> Any:
        """Load the module from a Trainer's checkpoint; nothing in the file is executed.

        Parameters
        ----------
        checkpoint_path
            The ``.ckpt`` file.
        **options
            Lightning's own arguments, such as ``map_location``.
        """
        options.setdefault("weights_only", True)
        return super().load_from_checkpoint(checkpoint_path, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save all settings of the encoder, so that the checkpoint loads by itself."""
        encoder = self._need_backbone().config_dict["encoder"]
        config = {**self.settings.plain, "encoder": encoder}
        checkpoint["hyper_parameters"] = {"config": config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the modules if the number of features was not known before."""
        if self.backbone is None:
            self._build(int(checkpoint["hyper_parameters"]["config"]["encoder"]["d_input"]))
