"""Define what every backbone must do, and nothing else.

A new backbone is one class, one registration (`molfun.registry` or an entry point) and one class of
tests that inherits the contract. What only some can do are mix-ins in files of their own:

* `molfun.backbones.splitting.PrefixSplitting`: run the frozen blocks apart from the rest;
* `molfun.backbones.planning.MemoryPlanning`: keep activations as memory allows;
* `molfun.backbones.kernels.KernelChoice`: run faster code with the same results;
* `molfun.backbones.own_heads.OwnHeads`: bring heads along;
* `molfun.backbones.tensor_input.TensorInput`: learn from tensors given in place of samples.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from molfun.errors import ContractError, DataError
from molfun.fingerprint import combine_digests, tensor_digests
from molfun.sample import Sample
from molfun.trunk import TrunkOutput

Features = dict[str, torch.Tensor]
"""Input tensors of one sample (no batch dimension) or of one batch, by name."""

Run = Callable[[Sequence[Sample], Sequence[str]], TrunkOutput]
"""Gives the named outputs of a model for samples, in eval mode and without a graph."""

LayerKind = Literal["embedder", "early", "block", "structure_module", "output", "head"]


@dataclass(frozen=True)
class Layer:
    """Place of a parameter, from the input to the output of the backbone.

    ``embedder`` (the input embedding), ``early`` (whatever else feeds the first block), ``block``
    (with its `index`), ``structure_module``, ``output`` (the backbone's own output heads), ``head``
    (those of them that the head in use is a view on).
    """

    kind: LayerKind
    index: int = 0


class _SetByConstructor:
    """An attribute of a part that its constructor has to set; reading it before is an error."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise ContractError(f"{owner.__name__}.__init__ must set self.{self._name}.")


class Backbone(nn.Module, ABC):
    """A pretrained model behind one interface.

    A subclass sets the attributes below that have no default and writes the seven abstract methods.
    Its constructor takes ``weights`` (a path, or None for random weights) and ``seed`` (of the
    random weights) by name, and settings of its own that have defaults. A class that lacks one
    of these is refused when it is made.

    Raises
    ------
    ContractError
        If a subclass lacks an attribute or an argument of its constructor.
    """

    name: ClassVar[str]
    """Registered name."""
    display_name: ClassVar[str]
    """Name shown to people."""
    inputs: ClassVar[tuple[str, ...]]
    """Kinds of data it takes, the usual one first: names in `molfun.registry.DATASETS`."""
    block_prefix: ClassVar[str]
    """Module path of the list of blocks, relative to the backbone."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Module-name suffixes inside the blocks that LoRA adapts by default."""

    single_dim: int = _SetByConstructor()  # type: ignore[assignment]  # stands for the number
    """Channels of `TrunkOutput.single`; the constructor sets it."""
    pair_dim: int | None = None
    """Channels of `TrunkOutput.pair`; None where the backbone has no pairs."""
    takes_preset: ClassVar[bool] = True
    """True if the argument ``config`` takes names of architectures."""

    default_head: ClassVar[str] = "mlp"
    """Head where none is asked for on the command line."""
    default_lr: ClassVar[float | None] = None
    """Learning rate on the command line where none is given; None for the strategy's own."""
    length_power: ClassVar[float] = 2.0
    """Power of the length with which the cost of a sample grows: 2 for padded attention."""
    starts_random: ClassVar[bool] = False
    """True if random weights are the usual beginning, and nothing to warn of."""
    names_weights: ClassVar[bool] = True
    """True if a checkpoint may refer to the weight file for weights that did not train. False if
    reading that file needs ``trust``."""
    checks_quickly: ClassVar[bool] = False
    """True if `check` opens no file, so that all samples are checked before one is predicted."""
    featurizes_in_workers: ClassVar[bool] = False
    """True if loader workers should run `featurize` because it is slow. It must then use no weights
    and keep nothing, since each worker is a copy of the process for one epoch."""
    kernels: str = "stock"
    """Whose code runs now, "stock" (the package's own) or "fast"; part of a run's identity."""
    feature_names: list[str] | None = None
    """Names of the features of series it was trained on, in order, where they are known."""
    unread: frozenset[str] = frozenset()
    """Weights that stayed random since the file had none and no representation needs them. They
    depend on the seed, so they are no part of what identifies the model."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not any(getattr(getattr(cls, n, None), "__isabstractmethod__", False) for n in MUST_DO):
            _check_class(cls)

    # --- what every backbone does ----------------------------------------------------------------

    @abstractmethod
    def featurize(self, sample: Sample) -> Features:
        """Turn one sample into input tensors; the same sample always gives the same tensors.

        Raises
        ------
        DataError
            Naming the sample, if it lacks what the model needs.
        """

    @abstractmethod
    def collate(self, features: Sequence[Features]) -> Features:
        """Put the input tensors of several samples into one batch, padded or packed.

        Keys that `featurize` does not give (an objective adds its labels) go along as tensors of
        their kind do.
        """

    @abstractmethod
    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        """Run the model; compute no more than the representations named in `outputs`.

        ``mean`` is pooled from `single` where it is asked for and not given, so `single` has to be
        there then. Padding has no influence on residues and a mask of 0.
        """

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Repeated blocks of the trunk, first to last."""

    @abstractmethod
    def layer_of(self, parameter: str) -> Layer:
        """Find the layer that the parameter of that name belongs to."""

    @property
    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Everything needed to build the same architecture again, as plain values."""

    @classmethod
    @abstractmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""

    # --- what a backbone may adapt ---------------------------------------------------------------

    def check(self, sample: Sample) -> None:
        """Raise a `DataError` if `featurize` or `forward` could not take `sample`; be quick."""

    def problems(self, samples: Iterable[Sample]) -> tuple[int, list[str]]:
        """Count the samples that the model cannot take, and list the reasons."""
        found = []
        for sample in samples:
            try:
                self.check(sample)
            except DataError as error:
                found.append(str(error))
        return len(found), found

    def featurize_key(self) -> str:
        """Settings that change what `featurize` gives; part of every cache key."""
        return self.name

    def fit_inputs(self, samples: Iterable[Sample], run: Run) -> None:
        """Learn the scale of the inputs from the training samples, where that is not known yet.

        Parameters
        ----------
        samples
            The training set; samples that are not asked for cost nothing.
        run
            Gives what the model outputs for some of them now, before it trains.
        """

    def serve(self, tasks: Sequence[Any]) -> None:
        """Adapt to the tasks that the model is going to learn."""

    def set_precision(self, precision: str) -> None:
        """Prepare for a Fabric precision name ("32-true", "bf16-mixed", "16-mixed")."""

    def weights_changed(self) -> None:
        """Update what depends on weights after they were set from outside."""

    def mark_trained(self) -> None:
        """Treat the current weights as the model's own, however they came about."""

    # --- what identifies it ----------------------------------------------------------------------

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

    def fingerprint(self) -> str:
        """Sha256 over architecture and base weights, without adapters."""
        return combine_digests(self.config_dict, tensor_digests(self.base_state_dict()))

    def state_fingerprint(self) -> str:
        """Sha256 over architecture and all weights, adapters included: what decides outputs."""
        tensors = {n: t for n, t in self.state_dict().items() if n not in self.unread}
        return combine_digests(self.config_dict, tensor_digests(tensors))


MUST_DO = tuple(sorted(Backbone.__abstractmethods__))
"""Methods that every backbone writes."""
_MUST_SET = {
    "name": "Registered name.",
    "display_name": "Name shown to people.",
    "inputs": 'Kinds of data it takes, the usual one first: ("sequences",), for example.',
    "block_prefix": "Module path of the list of blocks, relative to the backbone.",
    "lora_targets": "Module-name suffixes inside the blocks that LoRA adapts by default.",
}


def _check_class(cls: type[Backbone]) -> None:
    """Refuse a class that lacks what is used of every backbone."""
    for name, meaning in _MUST_SET.items():
        if not hasattr(cls, name):
            raise ContractError(
                f"The backbone {cls.__name__} must set the class attribute {name}: {meaning}"
            )
    parameters = inspect.signature(cls.__init__).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [] if takes_all else [n for n in ("weights", "seed") if n not in parameters]
    if missing:
        raise ContractError(
            f"{cls.__name__}.__init__ must take {' and '.join(missing)}: every model is built with "
            f"weights=PATH_OR_NONE (its pretrained weights) and seed=NUMBER (of random ones)."
        )
