"""Self-supervised pre-training under a Lightning Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.errors import ConfigError
from molfun.lightning.data import rows
from molfun.lightning.module import STATE, TimeSeriesModule
from molfun.models.series_config import PretrainConfig, build_objective, pretrain_config
from molfun.objectives.base import Objective
from molfun.sample import Sample
from molfun.training.selfsupervised import ObjectiveEvaluation, ObjectiveRunner


class SSLPretrainModule(TimeSeriesModule):
    """Pre-train an encoder with an objective.

    If ``encoder.d_input`` is left out, it is taken from the data: ``n_features`` of the data
    module, or of the first batch. Before training, mean and standard deviation of each feature are
    computed over all training data.

    The module logs ``train/loss_step`` and, once per epoch, ``train/loss``, ``val/loss``, the
    metrics of the objective as ``train/...`` and ``val/...``, and with a scheduler ``lr``. Values
    of an epoch are computed over all its samples in all processes; they are not means over batches.
    Every validation draws the same masks.

    Parameters
    ----------
    config
        Sections ``encoder``, ``ssl``, ``optimizer``, ``scheduler`` (optional), ``data`` and
        ``training`` (for `trainer_options`), as a dict or an OmegaConf ``DictConfig``; see
        `load_config`.

    Raises
    ------
    ConfigError
        If anything in the configuration is unknown (with the nearest name) or wrong.

    Notes
    -----
    With ``accumulate_grad_batches``, and over several processes, Lightning averages the losses of
    batches with equal weights, however many masked values each has. `MolfunStructureModel.pretrain`
    weights them by that number.

    Examples
    --------
    >>> module = SSLPretrainModule(
    ...     {"encoder": {"name": "gru_d", "d_input": 3, "d_model": 8}, "ssl": {"name": "mae"}}
    ... )
    >>> loss, metrics = module(torch.randn(2, 5, 3), torch.ones(2, 5, 3, dtype=torch.bool))
    >>> sorted(metrics)
    ['mae', 'mse', 'r2']
    """

    settings: PretrainConfig
    evaluation = ObjectiveEvaluation

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(pretrain_config(config))
        self.objective: Objective | None = None
        self._steps = 0
        d_input = self.settings.encoder.get("d_input")
        if d_input:
            self._build(d_input)

    # --- parts ---------------------------------------------------------------------------------

    def _build(self, d_input: int) -> None:
        self.backbone = TimeSeriesBackbone(
            {**self.settings.encoder, "d_input": d_input},
            seed=int(torch.randint(2**31, ())),
            standardize=self.settings.data.standardize is not False,
        )
        # only a check: the objective itself is built once the scale is known
        build_objective(self.settings.ssl).check(self.backbone)

    def _need_objective(self) -> Objective:
        """Return the objective, built once the scale is known: a teacher copies the encoder."""
        if self.objective is None:
            backbone = self._need_backbone()
            objective: Objective = build_objective(self.settings.ssl)
            objective.check(backbone)
            objective.build(backbone)
            self.objective = objective.to(self.device)
        return self.objective

    def _ssl_name(self) -> str:
        return str(self.settings.ssl["name"])

    def setup(self, stage: str) -> None:
        """Build the modules and learn the scale of the input, the first time only."""
        super().setup(stage)
        if self.backbone is not None:
            self._need_objective()

    def _trained(self) -> Iterable[tuple[str, str, nn.Parameter]]:
        self._need_objective()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name.partition(".")[0], name, parameter

    # --- steps ---------------------------------------------------------------------------------

    def _runner(self) -> ObjectiveRunner:
        objective = self._need_objective()
        return ObjectiveRunner(self._need_backbone(), objective, device=self.device)

    def _output(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        loss, result = self._evaluated(batch)
        return loss, self._runner().metrics(result)

    def _for_runner(self, batch: Mapping[str, Any]) -> list[Sample]:
        return rows(batch)

    # --- epochs --------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Give every process the same teacher, and count optimizer steps from here."""
        # DDP synchronises parameters at the start, and a teacher is no parameter
        objective, ranks = self._need_objective(), self._ranks()
        if ranks.size > 1:
            objective.load_resume_state(ranks.gather(objective.resume_state())[0])
        self._steps = self.trainer.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the teacher once per optimizer step."""
        # Lightning calls this hook after every batch, also within an accumulation window
        done = self.trainer.global_step
        if done > self._steps:
            self._steps = done
            total = self.trainer.estimated_stepping_batches
            self._need_objective().after_step(min(1.0, done / total))

    # --- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings, and the state of the objective that is not in its parameters."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE] = {"objective": self._need_objective().resume_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the modules if there are none yet, and restore their state.

        Raises
        ------
        ConfigError
            If another module wrote the checkpoint.
        """
        if STATE not in checkpoint:
            raise ConfigError("The checkpoint was not written by SSLPretrainModule.")
        super().on_load_checkpoint(checkpoint)
        self._need_objective().load_resume_state(checkpoint[STATE]["objective"])
