"""Optimizers by name: torch's own, and schedule-free AdamW of pytorch-optimizer.

The name is looked up in `OPTIMIZERS`; other packages add theirs with an entry point in the group
``molfun.optimizers``. Such a class is called with parameter groups, ``lr`` and ``weight_decay``,
and keeps in ``state_dict()`` all that an exact resume needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch

from molfun.errors import ConfigError
from molfun.registry import OPTIMIZERS
from molfun.text import unknown_name

_OPTIONS = {
    "adam": ("betas",),
    "adamw": ("betas",),
    "sgd": ("momentum",),
    "schedule_free_adamw": ("betas",),
}
"""Arguments of each optimizer in addition to learning rate and weight decay."""
DIVISIBLE = ("adam", "adamw", "sgd")
"""Optimizers that treat each number alone, so that they may hold a part of a weight."""
_FUSED = ("adam", "adamw")
"""Optimizers whose fused step, over all parameters at once, takes less than half the time on CPUs.
"""


def build_optimizer(
    name: str,
    groups: Iterable[Any],
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    betas: Sequence[float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """Make an optimizer over parameter groups or plain parameters.

    With gradient ``g``, parameter ``p``, rate ``lr`` and weight decay ``d``, one step takes

    * sgd: ``v <- momentum v + g + d p`` and ``p <- p - lr v`` (``v`` starts as the first gradient);
    * adam: uses the two moments of ``g + d p``, so that the decay (L2) is divided by the size of
      the gradients as well;
    * adamw: uses the two moments of ``g`` alone, and in addition ``p <- p - lr d p``;
    * adafactor: as adamw, with the second moment of a matrix as a product of a row and a column, no
      first moment, and steps relative to the size of the weights, so that ``lr`` is a share of it
      (Shazeer and Stern 2018);
    * muon: orthogonal steps for hidden matrices, adamw for the rest (`molfun.nn.muon`);
    * schedule_free_adamw: averages its weights in place of a schedule (`molfun.nn.schedule_free`).

    Adam and AdamW run fused on CPUs; on GPUs that is left to torch.

    Parameters
    ----------
    name
        A name in `OPTIMIZERS`.
    groups
        Parameters, or torch's groups of them (`molfun.nn.param_groups.for_optimizer`). Values that
        a group has itself (``lr``, ``weight_decay``) override the arguments here.
    lr
        Learning rate of plain parameters and of groups without one.
    weight_decay
        Weight decay of the same: L2 for adam and sgd, decoupled for the others.
    momentum
        Momentum of sgd, without Nesterov's correction. The others ignore it.
    betas
        Decay rates of the two moments of adam, adamw and schedule_free_adamw. The others ignore
        them.

    Returns
    -------
    torch.optim.Optimizer
        Made of the class of that name.

    Raises
    ------
    ConfigError
        If the name is unknown, a value is out of range, there is no parameter, or one has no
        learning rate. All problems are in one text.
    MissingDependencyError
        If the optimizer is one of a package that is not installed.

    References
    ----------
    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization"; Loshchilov and Hutter 2019,
    "Decoupled Weight Decay Regularization" (AdamW); Shazeer and Stern 2018, "Adafactor: Adaptive
    Learning Rates with Sublinear Memory Cost"; Sutskever et al. 2013, "On the importance of
    initialization and momentum in deep learning" (torch's form of momentum leaves the rate out of
    the velocity).

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = build_optimizer("sgd", [weight], lr=0.1, momentum=0.5)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight.tolist()
    [0.899..., 0.899...]
    >>> build_optimizer("sdg", [weight], lr=0.1)
    Traceback (most recent call last):
    ...
    molfun.errors.ConfigError: Unknown optimizer 'sdg'; known: adafactor, adam, adamw, muon,
    schedule_free_adamw, sgd. Did you mean 'sgd'?
    """
    entries = list(groups)
    problems = [
        *_problems(name, lr=lr, weight_decay=weight_decay, momentum=momentum, betas=betas),
        *_problems_of(entries, lr),
    ]
    if problems:
        raise ConfigError(" ".join(problems))
    given: dict[str, Any] = {"momentum": momentum, "betas": tuple(betas)}
    options = {option: given[option] for option in _OPTIONS.get(name, ())}
    if lr is not None:
        options["lr"] = lr
    if name in _FUSED and _all_on_cpu(entries):
        options["fused"] = True
    made: torch.optim.Optimizer = OPTIMIZERS[name](entries, weight_decay=weight_decay, **options)
    return made


def averages_weights(name: str) -> bool:
    """Return whether an optimizer averages its weights itself, in place of schedule and EMA.

    Examples
    --------
    >>> averages_weights("adamw"), averages_weights("schedule_free_adamw")
    (False, True)
    """
    return bool(getattr(OPTIMIZERS[name], "averages_weights", False))


def _all_on_cpu(entries: Sequence[Any]) -> bool:
    groups = [e["params"] if isinstance(e, Mapping) else [e] for e in entries]
    if not all(isinstance(group, list | tuple) for group in groups):
        return False  # an iterator can be read only once, and that is the optimizer's turn
    # not on a GPU: a fused step unscales float16 gradients itself, which the engine does before
    return all(p.device.type == "cpu" and p.is_floating_point() for g in groups for p in g)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a setting is a number, and not a string (1e-4 in YAML 1.1), true or false.

    Examples
    --------
    >>> [is_number(value) for value in (1, 0.5, "1e-4", True)]
    [True, True, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problems(
    name: str, *, lr: float | None, weight_decay: float, momentum: float, betas: Sequence[float]
) -> Iterator[str]:
    if name not in list(OPTIMIZERS):  # a list, since a name from a file may not be hashable
        yield unknown_name("optimizer", name, OPTIMIZERS)
    if lr is not None and not (is_number(lr) and 0 < lr < math.inf):
        yield f"lr must be above 0, got {lr!r}."
    if not (is_number(weight_decay) and 0 <= weight_decay < math.inf):
        yield f"weight_decay must be at least 0, got {weight_decay!r}."
    if not _is_decay(momentum):
        yield f"momentum must be in [0, 1), got {momentum!r}."
    if len(betas) != 2 or not all(map(_is_decay, betas)):
        yield f"betas must be two numbers in [0, 1), got {betas!r}."


def _is_decay(value: object) -> bool:
    return is_number(value) and 0 <= value < 1


def _problems_of(entries: Sequence[Any], lr: float | None) -> Iterator[str]:
    if not entries:
        yield "There is no parameter to train."
    own_rate = [isinstance(entry, Mapping) and "lr" in entry for entry in entries]
    if lr is None and not all(own_rate):
        yield "Give lr, or a group of its own with lr to every parameter."
