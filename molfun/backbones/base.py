"""The interface that every backbone implements, and nothing else.

A new backbone is one class, one registration (`molfun.registry` or an entry point) and one class of
tests that inherits the contract. Abilities that only some backbones have are mix-ins:

* `molfun.backbones.splitting.PrefixSplitting`: run the frozen blocks apart from the rest;
* `molfun.backbones.planning.MemoryPlanning`: keep as many activations as memory allows;
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
from molfun.strict import must_set
from molfun.trunk import TrunkOutput

Features = dict[str, torch.Tensor]
"""Input tensors of one sample (no batch dimension) or of one batch, by name."""

Run = Callable[[Sequence[Sample], Sequence[str]], TrunkOutput]
"""Function that returns the named outputs of a model for samples, in eval mode, without a graph."""

MOST_REASONS = 100_000
"""Samples for which `Backbone.problems` gives a reason; all are counted."""

LayerKind = Literal["embedder", "early", "block", "structure_module", "output", "head"]


@dataclass(frozen=True)
class Layer:
    """Position of a parameter between input and output of the backbone.

    ``embedder`` (the input embedding), ``early`` (whatever else feeds the first block), ``block``
    (with its `index`), ``structure_module``, ``output`` (the backbone's own output heads), ``head``
    (those output heads that the head in use reads).
    """

    kind: LayerKind
    index: int = 0


class _SetByConstructor:
    """Attribute that a constructor has to set; reading it earlier is a `ContractError`."""

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
    weights_licence: ClassVar[str] = ""
    """Licence of the published weights, for model cards; empty where each file has its own."""
    inputs: ClassVar[tuple[str, ...]]
    """Data kinds it takes, the usual one first: names in `molfun.registry.DATASETS`."""
    block_prefix: ClassVar[str]
    """Module path of the list of blocks, relative to the backbone."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Module-name suffixes inside the blocks that LoRA adapts by default."""

    stock_prefix: ClassVar[str] = ""
    """Module path of the stock model, with a dot at its end, if adapter files are to load into it;
    empty if they belong to the backbone."""
    lora_structure: ClassVar[tuple[str, ...]] = ()
    """Full names of the layers of the structure module that LoRA adapts where it is asked to."""

    single_dim: int = _SetByConstructor()  # type: ignore[assignment]  # stands for the number
    """Channels of `TrunkOutput.single`; the constructor sets it."""
    pair_dim: int | None = None
    """Channels of `TrunkOutput.pair`; None where the backbone has no pairs."""
    takes_preset: ClassVar[bool] = True
    """True if the argument ``config`` may be the name of a preset."""

    default_head: ClassVar[str] = "mlp"
    """Head that the command line takes if none is given."""
    default_lr: ClassVar[float | None] = None
    """Learning rate that the command line takes if none is given; None takes the strategy's."""
    length_power: ClassVar[float] = 2.0
    """Power of the length with which the cost of a sample grows: 2 for padded attention."""
    starts_random: ClassVar[bool] = False
    """True if starting from random weights is usual, so that no warning is needed."""
    names_weights: ClassVar[bool] = True
    """True if a checkpoint may refer to the weight file for weights that did not train. False if
    reading that file needs ``trust``."""
    has_int8: ClassVar[bool] = False
    """True if the frozen linear layers of its blocks may be in int8 (`molfun.nn.int8`): all of them
    run as modules, or by `molfun.nn.lora.low_rank_parts`."""
    checks_quickly: ClassVar[bool] = False
    """True if `check` opens no file, so that all samples can be checked before a prediction."""
    featurizes_in_workers: ClassVar[bool] = False
    """True if loader workers should run `featurize` because it is slow. It must then use no weights
    and store nothing on the backbone, since each worker is a copy of the process for one epoch."""
    kernels: str = "stock"
    """Implementation that runs now: "stock" (the package's own) or "fast" (Molfun's). It is part of
    a run's identity, since the two differ by rounding."""
    feature_names: list[str] | None = None
    """Names of the time-series features it was trained on, in order, if they are known."""
    unread: frozenset[str] = frozenset()
    """Weights that the weight file lacks and that no representation needs. They stayed random, so
    they depend on the seed and are left out of fingerprints."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Checked when the class is made and not when it is used, so that the error points at its
        # author. A class with abstract methods is a base of others; theirs are checked.
        # `cls.__abstractmethods__` is only set after this hook.
        if not any(getattr(getattr(cls, n, None), "__isabstractmethod__", False) for n in MUST_DO):
            _check_class(cls)

    # --- what every backbone does ----------------------------------------------------------------

    @abstractmethod
    def featurize(self, sample: Sample) -> Features:
        """Turn one sample into input tensors; the same sample always gives the same tensors.

        Raises
        ------
        DataError
            If the sample lacks what the model needs; the text names the sample.
        """

    @abstractmethod
    def collate(self, features: Sequence[Features]) -> Features:
        """Put the input tensors of several samples into one batch, padded or packed.

        Keys that `featurize` does not produce, such as labels that an objective adds, are padded or
        packed in the same way.
        """

    @abstractmethod
    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        """Run the model and compute the representations named in `outputs`, no others.

        If ``mean`` is asked for, return ``mean`` or ``single``, from which it is then pooled.
        Padding must not influence residues, and has a mask of 0.
        """

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Repeated blocks of the trunk, first to last."""

    @abstractmethod
    def layer_of(self, parameter: str) -> Layer:
        """Return the layer of the parameter with this name."""

    @property
    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Settings that build the same architecture again, as plain values."""

    @classmethod
    @abstractmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""

    # --- what a backbone may adapt ---------------------------------------------------------------

    def check(self, sample: Sample) -> None:
        """Raise a `DataError` if `featurize` or `forward` cannot take `sample`.

        It runs on all samples before training, so it should be quick.
        """

    def problems(self, samples: Iterable[Sample]) -> tuple[int, list[str]]:
        """Count the samples that the model cannot take, and list the reasons of the first."""
        n, found = 0, []
        for sample in samples:
            try:
                self.check(sample)
            except DataError as error:
                n += 1
                if n <= MOST_REASONS:
                    found.append(str(error))
        return n, found

    def doubtful(self, dataset: Any) -> Sequence[int] | None:  # noqa: ARG002
        """Return the places of those samples of a data set that `check` has to look at.

        None is all of them. A backbone that can tell quickly that most samples are fine (all
        letters of all sequences are known) spares the rest.
        """
        return None

    def featurize_key(self) -> str:
        """Return the settings that decide the result of `featurize`; part of every cache key."""
        return self.name

    def fit_inputs(self, samples: Iterable[Sample], run: Run) -> None:
        """Learn the scale of the inputs from the training samples, if it is not known yet.

        Parameters
        ----------
        samples
            The training set, read lazily: samples that are not iterated over are not opened.
        run
            Function that returns outputs of the model for samples, as it is before training.
        """

    @property
    def why_whole(self) -> str:
        """Why the blocks cannot be divided among processes; empty if they can."""
        return ""

    def serve(self, heads: Sequence[Any]) -> None:
        """Adapt to the heads of the model, each a `molfun.training.task_head.TaskHead`.

        Called when heads are built or loaded, and when their tasks have learned from labels.
        """

    def set_precision(self, precision: str) -> None:
        """Prepare for a precision by its name in Fabric ("32-true", "bf16-mixed", "16-mixed")."""

    def weights_changed(self) -> None:
        """Update values derived from the weights, after these were set from outside."""

    def mark_trained(self) -> None:
        """Treat all current weights as part of the model, even those that were never read."""

    # --- what identifies it ----------------------------------------------------------------------

    def base_state_dict(self, *, whole: bool = False) -> dict[str, torch.Tensor]:
        """Return the weights without adapters, under the names the backbone was built with.

        A weight that is used in two places is listed under the first of its names only. `unread`
        weights are included only with `whole`.
        """
        tensors: dict[str, torch.Tensor] = {}
        seen = set()
        for name, tensor in self.state_dict().items():
            # tied weights share their memory; an empty tensor has no memory, and so no such sign
            # one in int8 has none of its own, but that of its integers
            memory = getattr(tensor, "qdata", tensor).data_ptr()
            place = (memory, tensor.shape, tensor.dtype)
            known = place in seen and tensor.numel()
            if ".lora_" in name or known or (name in self.unread and not whole):
                continue
            seen.add(place)
            tensors[name.replace(".base_layer.", ".")] = tensor
        return tensors

    def fingerprint(self) -> str:
        """Return the sha256 over architecture and base weights, without adapters."""
        return combine_digests(self.config_dict, self.base_digests())

    def base_digests(self) -> dict[str, str]:
        """Return the digest of each base weight; one in int8 has that of its floats."""
        return tensor_digests(self.base_state_dict(), of_source=True)

    def state_fingerprint(self) -> str:
        """Return the sha256 over all that decides outputs: architecture, weights and adapters."""
        # not `base_state_dict`: merged and injected adapters change the outputs
        tensors = {n: t for n, t in self.state_dict().items() if n not in self.unread}
        return combine_digests(self.config_dict, tensor_digests(tensors))


MUST_DO = tuple(sorted(Backbone.__abstractmethods__))
"""Methods that every backbone has to define."""
_MUST_SET = {
    "name": "Registered name.",
    "display_name": "Name shown to people.",
    "inputs": 'Kinds of data it takes, the usual one first: ("sequences",), for example.',
    "block_prefix": "Module path of the list of blocks, relative to the backbone.",
    "lora_targets": "Module-name suffixes inside the blocks that LoRA adapts by default.",
}


def _check_class(cls: type[Backbone]) -> None:
    """Refuse a class without a required attribute or constructor argument."""
    # with its meaning in the text: the author of a backbone should not have to look it up
    must_set(cls, "backbone", _MUST_SET)
    parameters = inspect.signature(cls.__init__).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [] if takes_all else [n for n in ("weights", "seed") if n not in parameters]
    if missing:
        raise ContractError(
            f"{cls.__name__}.__init__ must take {' and '.join(missing)}: every model is built with "
            f"weights=PATH_OR_NONE (its pretrained weights) and seed=NUMBER (of random ones)."
        )
