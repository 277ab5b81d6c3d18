"""One thing that a model predicts: a head, the task that it learns, and the weight of its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import nn

from molfun.errors import DataError
from molfun.heads.base import Head
from molfun.sample import is_missing
from molfun.tasks.base import Task
from molfun.text import counted, listing


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A head and its task in a model that has one of them or several.

    Parameters
    ----------
    head, task
        The parts.
    name
        Name among several: the label of a sample is then a mapping from names to labels, and
        metrics begin with it (``val/ddg/rmse``). The only head of a model has none, and takes the
        label of a sample as it is.
    weight
        Factor of its loss in the sum over the heads.
    head_name, task_name
        Names in the registries, by which a checkpoint builds the parts again.
    labels_per_sample
        Mean number of labels of a training sample. The loss of a head is divided by it, so that
        each is the mean over its labels, whether it has one label per sequence or one per residue.

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
        """Name of one of its values among those of all heads."""
        return f"{self.name}/{name}" if self.name else name

    def label(self, target: Any) -> Any:
        """Its label in that of a sample; None where there is none.

        Raises
        ------
        DataError
            If it is one of several heads, and the label names none of them.
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
        """Its labels in those of several samples."""
        return [self.label(target) for target in targets]

    def share(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Its outputs and the mask, in what `SupervisedRunner.outputs` gives."""
        return {**outputs[self.name], "mask": outputs["mask"]} if self.name else outputs

    def weighed(self, targets: Sequence[Any]) -> Self:
        """The same with `labels_per_sample` of a training set, once the task knows its labels."""
        sizes = [np.isfinite(self.task.numbers(t)).sum() for t in targets if not is_missing(t)]
        return replace(self, labels_per_sample=max(float(sum(sizes)) / max(len(targets), 1), 1e-12))


def has_label(heads: Sequence[TaskHead], target: Any) -> bool:
    """Return whether any head has a label in that of a sample."""
    return any(not is_missing(part.label(target)) for part in heads)


def check_names(heads: Sequence[TaskHead], targets: Sequence[Any]) -> None:
    """Refuse labels under names that no head has.

    Raises
    ------
    DataError
        With the names.
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
    """Representations that any of the heads reads, each once."""
    return tuple(dict.fromkeys(name for part in heads for name in part.head.needs))


def as_module(heads: Sequence[TaskHead]) -> nn.Module | None:
    """The only head, or all by their names; None where there is none."""
    if len(heads) == 1 and not heads[0].name:
        return heads[0].head
    return nn.ModuleDict({part.name: part.head for part in heads}) if heads else None
