"""`TaskHead`: one prediction of a model, with its head, its task and the weight of its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from molfun.errors import ConfigError, DataError
from molfun.heads.base import Head
from molfun.sample import Sample, is_missing
from molfun.tasks.base import Task
from molfun.text import counted, listing
from molfun.trunk import ChainCheck, TrunkOutput


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A head with its task, in a model of one or several heads.

    Parameters
    ----------
    head, task
        The head, and the task whose labels it learns.
    name
        Name among several heads: the label of a sample is then a mapping from names to labels, and
        names of metrics begin with it (``val/ddg/rmse``). A single head has the empty name, and
        takes the label of a sample unchanged.
    weight
        Factor of its loss in the sum over the heads.
    head_name, task_name
        Names in the registries, from which a checkpoint rebuilds head and task.
    labels_per_sample
        Mean number of labels per training sample. The loss of each of several heads is divided by
        it, so that one label per sequence weighs as much as the labels of all residues together.

    Examples
    --------
    >>> from molfun.heads import MLPHead
    >>> from molfun.tasks import RegressionTask
    >>> part = TaskHead(head=MLPHead(single_dim=8), task=RegressionTask(), name="ddg")
    >>> part.label({"ddg": 1.5, "tm": 60.0}), part.label({"tm": 60.0}), part.key("rmse")
    (1.5, None, 'ddg/rmse')
    """

    head: Head
    task: Task
    name: str = ""
    weight: float = 1.0
    head_name: str = ""
    task_name: str = ""
    labels_per_sample: float = 1.0

    def key(self, name: str) -> str:
        """Return the name of one of its values among those of all heads: ``ddg/rmse``."""
        return f"{self.name}/{name}" if self.name else name

    def label(self, target: Any) -> Any:
        """Return the label of this head from the label of a sample; None if there is none.

        Raises
        ------
        DataError
            If it is one of several heads, and the label of the sample is not a mapping.
        """
        if not self.name or is_missing(target):
            return target
        if not isinstance(target, Mapping):
            raise DataError(
                f"The model has several heads, so a label maps their names to labels, as in "
                f"{{{self.name!r}: ...}}; got {target!r}."
            )
        return target.get(self.name)

    def labels(self, targets: Iterable[Any]) -> list[Any]:
        """Return the labels of this head from the labels of several samples."""
        return [self.label(target) for target in targets]

    def outputs(self, trunk: TrunkOutput, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return the outputs of the head for a batch; `samples` are empty for one of tensors."""
        found: dict[str, torch.Tensor] = self.head(self.head.with_samples(trunk, samples))
        return found

    def share(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs of this head, with the mask, from `SupervisedRunner.outputs`."""
        return {**outputs[self.name], "mask": outputs["mask"]} if self.name else outputs

    def weighed(self, targets: Sequence[Any]) -> Self:
        """Return a copy with `labels_per_sample` of a training set; call it after `fit_targets`."""
        # not 0, which would divide by it: a head without any label then has no loss either
        sizes = [self.task.count(t) for t in targets if not is_missing(t)]
        return replace(self, labels_per_sample=max(float(sum(sizes)) / max(len(targets), 1), 1e-12))


def has_label(heads: Sequence[TaskHead], target: Any) -> bool:
    """Return whether the label of a sample has a value for any head."""
    return any(not is_missing(part.label(target)) for part in heads)


def check_names(heads: Sequence[TaskHead], targets: Sequence[Any]) -> None:
    """Refuse labels under names that no head has.

    Raises
    ------
    DataError
        Listing these names.
    """
    known = {part.name for part in heads}
    if known == {""}:
        return
    named = (target for target in targets if isinstance(target, Mapping))
    unknown = {str(name) for target in named for name in target if name not in known}
    if unknown:
        raise DataError(
            f"{counted(len(unknown), 'label name')} without a head of that name:\n"
            f"{listing(sorted(unknown))}\nThe heads are {', '.join(sorted(known))}."
        )


def joined_needs(heads: Sequence[TaskHead]) -> tuple[str, ...]:
    """Return the representations that any of the heads reads, each once."""
    return tuple(dict.fromkeys(name for part in heads for name in part.head.needs))


def chains_read(heads: Sequence[TaskHead]) -> ChainCheck | None:
    """Return what refuses a sample by its number of chains, if heads read chains apart; else None.

    Raises
    ------
    ConfigError
        If some do and others do not.
    """
    found = {part.head.reads_chains for part in heads}
    if len(found) > 1:
        chains = [part.head_name for part in heads if part.head.reads_chains]
        others = [part.head_name for part in heads if not part.head.reads_chains]
        raise ConfigError(
            f"Heads of one model read either whole samples ({', '.join(others)}) or their chains "
            f"({', '.join(chains)}). Choose heads of one kind."
        )
    return heads[0].head.chains_read if heads and heads[0].head.reads_chains else None


def as_module(heads: Sequence[TaskHead]) -> nn.Module | None:
    """Return the only head, or a ModuleDict of several by name; None without heads."""
    if len(heads) == 1 and not heads[0].name:
        return heads[0].head
    # the single head is not in a dict, so that its parameters keep the names of older checkpoints
    return nn.ModuleDict({part.name: part.head for part in heads}) if heads else None
