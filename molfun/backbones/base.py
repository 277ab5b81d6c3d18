"""What the facade, the strategies and the cache need of a backbone; nothing else.

A new backbone is one package here, one line in `molfun.registry` and one contract test.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from molfun.errors import ConfigError, DataError, unknown_name
from molfun.sample import Sample
from molfun.trunk import TrunkOutput

Features = dict[str, torch.Tensor]
"""Input tensors of one sample (no batch dimension) or of one batch, by name."""

Run = Callable[[Sequence[Sample], Sequence[str]], TrunkOutput]
"""Gives the named outputs of a model for samples, in eval mode and without a graph."""

LayerKind = Literal["embedder", "early", "block", "structure_module", "output", "head"]

Kernels = Literal["auto", "stock", "fast"]
"""Whose code runs: that of the backbone's package, or Molfun's faster one with the same results."""
KERNELS_SWITCH = "MOLFUN_KERNELS"
"""Environment variable: what ``"auto"`` stands for, ``stock`` or ``fast``."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a backbone will keep activations, and what a training step will take.

    Parameters
    ----------
    peak
        Bytes of a step over what the process holds before it, as predicted.
    how
        What was chosen, for people.
    fits_up_to
        Length of which a step fits; 0 where none does, or it fits as it is.
    """

    peak: int
    how: str
    fits_up_to: int = 0


@dataclass(frozen=True)
class Layer:
    """Where a parameter sits, from the input to the output of the backbone.

    ``embedder`` (the input embedding), ``early`` (whatever else feeds the first block), ``block``
    (with its `index`), ``structure_module``, ``output`` (the backbone's own output heads), ``head``
    (those of them that the head in use is a view on).
    """

    kind: LayerKind
    index: int = 0


class Backbone(nn.Module, ABC):
    """A pretrained model behind one interface.

    A subclass sets the class attributes and writes the abstract methods; the rest follows.
    """

    name: ClassVar[str]
    """Registered name."""
    display_name: ClassVar[str]
    """Name shown to people."""
    block_prefix: ClassVar[str]
    """Module path of the list of blocks, relative to the backbone."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Module-name suffixes inside the blocks that LoRA adapts by default."""

    inputs: ClassVar[tuple[str, ...]] = ("structure",)
    """What a sample may be: "structure", "sequence"."""
    default_head: ClassVar[str] = "affinity"
    """Head where none is asked for on the command line."""
    length_power: ClassVar[float] = 2.0
    """Power of the length with which the cost of a sample grows: 2 for padded attention."""

    single_dim: int
    pair_dim: int | None
    kernels: str = "stock"
    """Whose code runs now, "stock" or "fast"; `set_kernels` changes it."""
    default_lr: ClassVar[float | None] = None
    """Learning rate on the command line where none is given; None for the strategy's own."""
    starts_random: ClassVar[bool] = False
    """Whether random weights are the usual beginning, and nothing to warn of."""
    feature_names: list[str] | None = None
    """Names of the features of series it was trained on, in order, where they are known."""
    names_weights: ClassVar[bool] = True
    """Whether a checkpoint may leave out what is in the weight file; not where reading that file
    needs the user's word."""
    checks_quickly: ClassVar[bool] = False
    """Whether `check` opens no file: all samples are looked at before the first prediction."""
    unread: frozenset[str] = frozenset()
    """Weights that stayed random since the file had none and no representation needs them. They
    depend on the seed, so they are no part of what identifies the model."""

    @abstractmethod
    def featurize(self, sample: Sample) -> Features:
        """Turn one sample into input tensors; the same sample always gives the same tensors."""

    def serve(self, task: Any) -> None:
        """Be told of the task whose labels the model learns."""

    def fit_inputs(self, samples: Iterable[Sample], run: Run) -> None:
        """Learn the scale of the inputs from the training samples, where that is not known yet.

        Parameters
        ----------
        samples
            The training set; samples that are not asked for cost nothing.
        run
            Gives what the model outputs for some of them now, before it trains.
        """

    def check_batch(self, batch: Features) -> None:
        """Raise a `DataError` if tensors given in place of samples say nothing."""

    def check(self, sample: Sample) -> None:
        """Raise a `DataError` if `featurize` or `forward` could not take `sample`; be quick."""

    def problems(self, samples: Iterable[Sample]) -> tuple[int, list[str]]:
        """How many samples the model cannot take, and why: a line for each, or for several."""
        found = []
        for sample in samples:
            try:
                self.check(sample)
            except DataError as error:
                found.append(str(error))
        return len(found), found

    @abstractmethod
    def collate(self, features: Sequence[Features]) -> Features:
        """Pad and stack the input tensors of several samples into one batch."""

    def split(self, batch: Features) -> list[Features]:  # noqa: ARG002
        """The features of each sample of a batch: what `collate` was given.

        Raises
        ------
        DataError
            If the backbone's batches cannot be taken apart.
        """
        raise DataError(
            f"Pre-training of {self.display_name} needs samples, not tensors: pass a dataset or a "
            f"loader of samples."
        )

    @abstractmethod
    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        """Run the model; compute no more than the representations named in `outputs`."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Repeated blocks of the trunk, first to last."""

    @abstractmethod
    def layer_of(self, parameter: str) -> Layer:
        """Where the parameter of that name sits."""

    @property
    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Everything needed to build the same architecture again, as plain values."""

    @classmethod
    @abstractmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""

    # --- the frozen prefix: all before the first block that trains --------------------------------

    def frozen_blocks(self) -> int:
        """How many leading blocks are frozen along with all that comes before them."""
        trains = [self.layer_of(n) for n, p in self.named_parameters() if p.requires_grad]
        if any(layer.kind in ("embedder", "early") for layer in trains):
            return 0
        indices = [layer.index for layer in trains if layer.kind == "block"]
        return min(indices, default=len(self.blocks()))

    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:  # noqa: ARG002
        """Whether `run_prefix` and `run_suffix` can divide the forward pass there."""
        return False

    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run all before `block`, without a graph.

        The result of a batch of one sample is what a cache keeps.
        """
        raise NotImplementedError  # reached only if `splits_before` promises what is not there

    def join_states(self, states: Sequence[Features]) -> Features:
        """One batch from what `run_prefix` gave for samples one by one."""
        return self.collate(states)

    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Go on from `run_prefix`: the same output as `forward`."""
        raise NotImplementedError  # as above

    def prefix_fingerprint(self, block: int) -> str:
        """Sha256 over architecture and all weights that `run_prefix` uses."""
        tensors = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if (layer := self.layer_of(name)).kind in ("embedder", "early")
            or (layer.kind == "block" and layer.index < block)
        }
        return combine_digests({**self.config_dict, "block": block}, tensor_digests(tensors))

    def embedder(self) -> nn.Module | None:
        """Module that embeds the input, the layer of the kind "embedder"."""
        return None

    def structure_module(self) -> nn.Module | None:
        """Module that predicts coordinates; None where there is none."""
        return None

    def plan_memory(self, longest: Sample, batch_size: int, available: int) -> MemoryPlan | None:  # noqa: ARG002
        """Choose how activations are kept, so that a step on such a batch fits into so many bytes.

        None where there is nothing to choose or to predict.
        """
        return None

    def forget_plan(self) -> None:
        """Undo what `plan_memory` chose."""

    @property
    def own_head(self) -> str | None:
        """Head that comes with the backbone, which a model has where none is named."""
        return None

    def pretrained_head(self, name: str) -> dict[str, torch.Tensor] | None:  # noqa: ARG002
        """Weights that came with the backbone for the head of that name; None without any."""
        return None

    def featurize_key(self) -> str:
        """Settings that change what `featurize` gives; part of every cache key."""
        return self.name

    def set_precision(self, precision: str) -> None:
        """Prepare for a Fabric precision name ("32-true", "bf16-mixed", "16-mixed")."""

    def set_kernels(self, kernels: Kernels) -> None:
        """Choose whose code runs; weights and names stay as they are.

        Parameters
        ----------
        kernels
            ``"stock"`` is the package's own, ``"fast"`` insists on Molfun's, ``"auto"`` takes
            Molfun's where it exists and gives the same numbers.

        Raises
        ------
        ConfigError
            If the name is unknown, or that code does not exist or fails its test here.
        """
        if kernels not in get_args(Kernels):
            raise ConfigError(unknown_name("kernels", kernels, get_args(Kernels)))
        if kernels not in ("auto", self.kernels):
            raise ConfigError(
                f"{self.display_name} has {self.kernels!r} kernels only. Use kernels='auto'."
            )

    def base_state_dict(self, *, whole: bool = False) -> dict[str, torch.Tensor]:
        """Weights of the backbone itself, without adapters, under the names it was built with.

        A weight that is used in two places stands under the first of its names alone. `unread`
        weights are there only if `whole` asks for them.
        """
        tensors: dict[str, torch.Tensor] = {}
        seen = set()
        for name, tensor in self.state_dict().items():
            place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
            known = place in seen and tensor.numel()
            if ".lora_" in name or known or (name in self.unread and not whole):
                continue
            seen.add(place)
            tensors[name.replace(".base_layer.", ".")] = tensor
        return tensors

    def unready(self) -> str | None:
        """Why predictions of its own head mean nothing yet, as a sentence; None if they do."""
        return None

    def weights_changed(self) -> None:
        """Be told that weights were put in from outside."""

    def mark_trained(self) -> None:
        """Be told that the weights of now, however they came about, are the model's own."""

    def fingerprint(self) -> str:
        """Sha256 over architecture and base weights, without adapters."""
        return combine_digests(self.config_dict, tensor_digests(self.base_state_dict()))

    def state_fingerprint(self) -> str:
        """Sha256 over architecture and all weights, adapters included: what decides outputs."""
        tensors = {n: t for n, t in self.state_dict().items() if n not in self.unread}
        return combine_digests(self.config_dict, tensor_digests(tensors))


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Sha256 of each tensor's type, shape and bytes."""
    digests = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        digests[name] = digest.hexdigest()
    return digests


def combine_digests(config: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """One sha256 over a configuration and the digests of its weights."""
    text = json.dumps([dict(config), sorted(digests.items())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
