"""Encoders of time series behind the `Backbone` interface."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun.backbones.base import Backbone, Features, Layer, Run
from molfun.backbones.planning import PositionCosts
from molfun.backbones.splitting import PrefixSplitting
from molfun.backbones.tensor_input import TensorInput
from molfun.backbones.timeseries.encoders.base import (
    BaseEncoder,
    EncoderConfig,
    LayeredEncoder,
    complete,
)
from molfun.backbones.timeseries.weights import StoredWeights, load_weights, read_weights
from molfun.errors import ConfigError, DataError
from molfun.nn.process import seeded
from molfun.registry import ENCODER_CONFIGS, ENCODERS
from molfun.sample import Sample
from molfun.strict import build
from molfun.trunk import TrunkOutput, padded_cat

DEFAULT_ENCODER = "transformer"
FEW_SAMPLES = 2
"""Observed values that a feature needs for a standard deviation."""


class TimeSeriesBackbone(Backbone, PrefixSplitting, TensorInput, PositionCosts):
    """An encoder of multivariate time series with missing values.

    Values are standardised to mean 0 and standard deviation 1 per feature. The scale is learned
    from the training data of the first `fit` or `pretrain`, and is part of the weights.

    Parameters
    ----------
    config
        Registered name of an encoder (``"transformer"``, ``"gru_d"``, ``"linear"``), its settings
        as a dict with ``name``, or a configuration object. None takes the settings stored with
        `weights`, or a transformer without.
    weights
        ``weights.safetensors`` of a pre-training run, or an encoder's ``.pt`` or ``.ckpt``; None
        starts from random weights.
    seed
        Seed of the random weights.
    d_input
        Number of features of the series, if `config` does not have it.
    standardize
        Whether values are standardised; None takes the setting stored with `weights`, or True
        without.

    Raises
    ------
    ConfigError
        If a setting is unknown or not allowed.
    CheckpointError
        If the weights do not match the encoder.

    Examples
    --------
    >>> backbone = TimeSeriesBackbone({"name": "gru_d", "d_input": 3, "d_model": 8})
    >>> batch = {"timeseries": torch.zeros(2, 5, 3)}
    >>> backbone(batch).single.shape
    torch.Size([2, 5, 8])
    """

    name = "timeseries"
    display_name = "Time series"
    block_prefix = "encoder.layers"
    lora_targets = ("q_proj", "v_proj")
    inputs = ("series",)
    default_lr = 1e-3  # an encoder of series is small, and mostly pre-trained at that rate
    starts_random = True

    input_mean: torch.Tensor
    input_std: torch.Tensor
    inputs_fitted: torch.Tensor

    def __init__(
        self,
        config: str | Mapping[str, Any] | EncoderConfig | None = None,
        *,
        weights: str | Path | None = None,
        seed: int = 0,
        d_input: int | None = None,
        standardize: bool | None = None,
    ) -> None:
        super().__init__()
        stored = None if weights is None else read_weights(weights)
        if stored is not None:
            config = with_stored(config, stored.encoder)
            standardize = same_scale(standardize, stored)
        self.config = resolve(config or DEFAULT_ENCODER, d_input)
        with seeded(seed):
            self.encoder: BaseEncoder = ENCODERS[self.config.name](self.config)
        self.standardize = standardize is not False
        self.d_input, self.single_dim = self.config.d_input, self.config.d_model
        self.register_buffer("input_mean", torch.zeros(self.d_input))
        self.register_buffer("input_std", torch.ones(self.d_input))
        self.register_buffer("inputs_fitted", torch.tensor(data=False))
        self.lora_targets = self.encoder.lora_targets  # type: ignore[misc]  # of this encoder
        if not isinstance(self.encoder, LayeredEncoder):
            self.block_prefix = "encoder"  # type: ignore[misc]  # as above
        if stored is not None:
            load_weights(self, stored)
            self.feature_names = stored.features

    # --- input ---------------------------------------------------------------------------------

    def featurize(self, sample: Sample) -> Features:
        """Return values and mask of one series: (time, features) each.

        Raises
        ------
        DataError
            If the sample has no series, an empty one, or one with another number of features.
        """
        values, mask = self._arrays(sample)
        if sample.max_length is not None:
            values, mask = values[: sample.max_length], mask[: sample.max_length]
        return {
            "timeseries": torch.where(mask, values, torch.zeros_like(values)),
            "mask": mask,
            "padding_mask": torch.ones(len(values), dtype=torch.bool),
        }

    def positions(self, sample: Sample) -> int:
        """Return the number of time steps."""
        return len(self.featurize(sample)["padding_mask"])

    def check_batch(self, batch: Features) -> None:
        """Refuse series without any observed value.

        Raises
        ------
        DataError
            If there are any; the text has their positions in the batch.
        """
        values = batch.get("timeseries")
        if values is None or values.ndim != 3:
            return  # `forward` raises an error about the shape
        observed = ~torch.isnan(values)
        for name in ("mask", "padding_mask"):
            given = batch.get(name)
            if given is not None:
                observed = observed & (given if given.ndim == 3 else given[..., None]).bool()
        empty = (~observed.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise DataError(
                f"Series {', '.join(map(str, empty[:5]))} of a batch have no observed value. Leave "
                f"them out, or look at the mask (True where a value was observed)."
            )

    def _arrays(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        features = sample.features or {}
        if "timeseries" not in features:
            raise DataError(
                f"{sample.shown} has neither a time series nor features that hold one. Use "
                f"TimeSeriesDataset."
            )
        values = torch.as_tensor(features["timeseries"], dtype=torch.float32)
        if values.ndim != 2 or len(values) == 0 or values.shape[1] != self.d_input:
            raise DataError(
                f"{sample.shown} has a series of shape {tuple(values.shape)}; this model takes "
                f"(time, {self.d_input})."
            )
        mask = ~torch.isnan(values)
        if features.get("mask") is not None:
            given = torch.as_tensor(features["mask"]).bool()
            if given.shape != values.shape:
                raise DataError(
                    f"{sample.shown} has a mask of shape {tuple(given.shape)} for a series of "
                    f"shape {tuple(values.shape)}."
                )
            mask &= given
        if bool(torch.isinf(values[mask]).any()):
            raise DataError(f"{sample.shown} has infinite values in its series.")
        return values, mask

    def check(self, sample: Sample) -> None:
        """Refuse a sample that `featurize` cannot take.

        Raises
        ------
        DataError
            If it cannot; the text names the sample.
        """
        self._arrays(sample)

    def split(self, batch: Features) -> list[Features]:
        """Return the features of each series of a batch, without padding."""
        values = batch["timeseries"]
        _, mask, padding_mask = self._inputs(batch)
        rows = []
        for i, n in enumerate(padding_mask.sum(1).tolist()):
            row = {
                "timeseries": torch.where(
                    mask[i, :n], values[i, :n], torch.zeros_like(values[i, :n])
                ),
                "mask": mask[i, :n],
                "padding_mask": padding_mask[i, :n],
            }
            rows.append(row)
        return rows

    def collate(self, features: Sequence[Features]) -> Features:
        """Pad all tensors along time to the longest series: (batch, time, ...)."""
        return {key: padded_cat([f[key].unsqueeze(0) for f in features]) for key in features[0]}

    @torch.no_grad()
    def fit_inputs(self, samples: Iterable[Sample], run: Run | None = None) -> None:  # noqa: ARG002
        """Learn mean and standard deviation of each feature's observed values, once only."""
        if self.inputs_fitted or not self.standardize:
            return
        # Sums in float64, in one pass over data that may not fit into memory. Shifted by the mean
        # of the first series: without, E[x^2] - E[x]^2 loses all digits if the mean is large.
        count = total = squares = torch.zeros(self.d_input, dtype=torch.float64)
        shift: torch.Tensor | None = None
        for sample in samples:
            values, mask = self._arrays(sample)
            wide, observed = values.double().nan_to_num(0.0), mask.double()
            if shift is None:
                shift = (wide * observed).sum(0) / observed.sum(0).clamp(min=1)
            off = (wide - shift) * observed
            count, total = count + observed.sum(0), total + off.sum(0)
            squares = squares + off.square().sum(0)
        if shift is None or bool((count < FEW_SAMPLES).all()):
            return
        known = count.clamp(min=1)
        mean = total / known
        std = (squares / known - mean.square()).clamp(min=0).sqrt()
        scale = (shift + mean).abs().clamp(min=1e-12)
        # A feature that never varies is shifted only: its deviation is rounding, and dividing by it
        # would blow up the first value that differs.
        std = torch.where((count >= FEW_SAMPLES) & (std > 1e-7 * scale), std, torch.ones_like(std))
        self.input_mean.copy_(shift + mean)
        self.input_std.copy_(std)
        self.inputs_fitted.fill_(value=True)

    def featurize_key(self) -> str:
        """Return the settings that decide the features."""
        return json.dumps([self.name, self.d_input])

    # --- forward -------------------------------------------------------------------------------

    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        """Encode a batch.

        Parameters
        ----------
        batch
            ``timeseries`` (batch, time, features); optionally ``mask`` of the same shape, True for
            observed values (without it, all that are not NaN), and ``padding_mask`` (batch, time),
            False for padding (without it, there is none).
        outputs
            Names among ``single`` (one vector per time step), ``mean`` and ``cls``.
        """
        x, mask, padding_mask = self._inputs(batch)
        return self._output(self.encoder(x, mask, padding_mask), padding_mask, outputs)

    def encode(self, batch: Features) -> torch.Tensor:
        """Return one vector per time step, (batch, time, channels), for objectives.

        Raises
        ------
        ConfigError
            If the encoder gives one vector per series.
        """
        single: torch.Tensor = self.forward(batch).need("single")
        return single

    def scaled(self, timeseries: torch.Tensor) -> torch.Tensor:
        """Standardise values to mean 0 and standard deviation 1 over the training data."""
        return (timeseries - self.input_mean) / self.input_std

    def _inputs(self, batch: Features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = batch["timeseries"]
        if values.ndim != 3 or values.shape[-1] != self.d_input:
            raise DataError(
                f"timeseries must be (batch, time, {self.d_input}), got {tuple(values.shape)}."
            )
        mask, padding_mask = complete(values, batch.get("mask"), batch.get("padding_mask"))
        mask = mask & ~torch.isnan(values) & padding_mask.unsqueeze(-1)
        x = torch.where(mask, self.scaled(values), torch.zeros((), device=values.device))
        return x, mask, padding_mask

    def _output(
        self, encoded: torch.Tensor, padding_mask: torch.Tensor, outputs: Sequence[str]
    ) -> TrunkOutput:
        weight = padding_mask.to(encoded.dtype)
        found: dict[str, torch.Tensor] = {"mask": weight}
        if encoded.ndim == 2:
            if set(outputs) - {"mean"}:
                raise ConfigError(
                    f"The encoder {self.config.name!r} gives one vector per series; {outputs[0]!r} "
                    f"needs one per time step. Choose pooling='mean'."
                )
            return TrunkOutput.from_tensors({**found, "mean": encoded})
        steps = encoded[:, 1:] if self.encoder.has_cls else encoded
        steps = steps * weight.unsqueeze(-1)
        if "cls" in outputs:
            if not self.encoder.has_cls:
                raise ConfigError(
                    f"This {self.config.name} has no summary token. Build it with cls=True, or "
                    f"choose pooling='mean' or 'attention'."
                )
            found["cls"] = encoded[:, 0]
        if "single" in outputs:
            found["single"] = steps
        if "mean" in outputs:
            found["mean"] = steps.sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
        return TrunkOutput.from_tensors(found)

    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:  # noqa: ARG002
        """Return True for every layer, if the encoder has layers."""
        return block > 0 and isinstance(self.encoder, LayeredEncoder)

    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run the embedding and the layers before `block`: ``hidden`` (batch, time, channels)."""
        x, mask, padding_mask = self._inputs(batch)
        encoder: Any = self.encoder
        hidden = encoder.run_layers(encoder.embedding(x, mask), padding_mask, range(block))
        if encoder.has_cls:
            # The summary token is stored apart, so that ``hidden`` and the padding mask have the
            # same time steps when series of different lengths are padded.
            return {"hidden": hidden[:, 1:], "first": hidden[:, 0], "padding_mask": padding_mask}
        return {"hidden": hidden, "padding_mask": padding_mask}

    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Run the layers from `block` on."""
        encoder: Any = self.encoder
        hidden, padding_mask = state["hidden"], state["padding_mask"]
        if "first" in state:
            hidden = torch.cat([state["first"].unsqueeze(1), hidden], dim=1)
        hidden = encoder.run_layers(hidden, padding_mask, range(block, len(encoder.layers)))
        return self._output(encoder.finish(hidden), padding_mask, outputs)

    # --- parts ---------------------------------------------------------------------------------

    def blocks(self) -> Sequence[nn.Module]:
        """Layers of the encoder; an encoder without layers is one block."""
        if isinstance(self.encoder, LayeredEncoder):
            return list(self.encoder.layers)
        return [self.encoder]

    def layer_of(self, parameter: str) -> Layer:
        """Find the layer of a parameter.

        Examples
        --------
        >>> TimeSeriesBackbone(d_input=3).layer_of("encoder.layers.1.fc1.weight")
        Layer(kind='block', index=1)
        """
        parts = parameter.split(".")
        if parts[0] != "encoder":
            return Layer("embedder")
        if not isinstance(self.encoder, LayeredEncoder):
            return Layer("block", 0)
        if parts[1] == "layers":
            return Layer("block", int(parts[2]))
        if parts[1] == "embedding":
            return Layer("embedder")
        return Layer("block", len(self.encoder.layers) - 1)  # norms after the last layer

    @property
    def config_dict(self) -> dict[str, Any]:
        """Name and settings of the encoder, and whether values are standardised."""
        encoder = {**dataclasses.asdict(self.config), "name": self.config.name}
        return {"encoder": encoder, "standardize": self.standardize}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""
        arguments = dict(config)
        return {"config": arguments.pop("encoder"), **arguments}


def with_stored(
    config: str | Mapping[str, Any] | EncoderConfig | None, stored: Mapping[str, Any] | None
) -> str | Mapping[str, Any] | EncoderConfig | None:
    """Return the settings of an encoder, completed by those stored with its weights."""
    if stored is None or isinstance(config, EncoderConfig):
        return config
    given: Mapping[str, Any] = {"name": config} if isinstance(config, str) else config or {}
    # settings of another kind of encoder mean nothing here; its weights are refused later
    other = given.get("name", stored.get("name")) != stored.get("name")
    return config if other else {**stored, **given}


def same_scale(standardize: bool | None, stored: StoredWeights) -> bool | None:
    """Return whether values are standardised: as in the training of the weights.

    Raises
    ------
    ConfigError
        If `standardize` contradicts that.
    """
    if stored.standardize is None:
        return standardize
    if standardize not in (None, stored.standardize):
        how = "standardised" if stored.standardize else "raw"
        raise ConfigError(
            f"standardize={standardize}, but {stored.path} was trained on {how} values. Leave it "
            f"out."
        )
    return stored.standardize


def resolve(config: str | Mapping[str, Any] | EncoderConfig, d_input: int | None) -> Any:
    """Return the configuration object for a name, a dict of settings, or such an object.

    Raises
    ------
    ConfigError
        If the encoder or a setting is unknown, or the number of features is not known.
    """
    if isinstance(config, EncoderConfig):
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        if d_input in (None, config.d_input):
            ENCODERS.resolve(config.name)
            return config
        return _with_width(type(config), values, d_input)
    values = {"name": config} if isinstance(config, str) else dict(config)
    values.setdefault("name", DEFAULT_ENCODER)
    name = values["name"]
    encoder = ENCODERS[name]
    known = name in ENCODER_CONFIGS
    return _with_width(ENCODER_CONFIGS[name] if known else encoder.config_class, values, d_input)


def _with_width(config_class: Any, values: dict[str, Any], d_input: int | None) -> Any:
    stated = values.get("d_input") or None
    if stated is not None and d_input is not None and stated != d_input:
        raise ConfigError(
            f"d_input={d_input}: the series have {d_input} features, and the encoder's "
            f"settings (or the weights) are for {stated} (d_input={stated})."
        )
    width = stated or d_input
    if width is None:
        raise ConfigError(
            "The number of features is not known. Pass backbone_config={'d_input': "
            "dataset.n_features}."
        )
    return build(config_class, {**values, "d_input": width})
