"""Losses of regression: of each label by itself, or of how well a batch is ranked.

A loss takes predictions and labels of a batch, (labels,) each, without missing ones, and returns
its sum over them; the mean over labels is taken where batches are put together. One of your own is
registered under a name::

    from molfun.registry import LOSSES

    @LOSSES.register("cubic")
    def cubic(prediction, target):
        return (prediction - target).abs().pow(3).sum()

or by the entry point group ``molfun.losses`` of a package. In Python the function may also be given
itself, ``task_config={"loss": cubic}``; see `molfun.tasks.chosen_loss` for what becomes of it in a
checkpoint.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from molfun._shapes import Float
from molfun.registry import LOSSES
from molfun.strict import check_choice, refuse_unknown

Loss = Callable[..., torch.Tensor]
Row: TypeAlias = "Float[torch.Tensor, 'labels']"


ELEMENTWISE: dict[str, Loss] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}
"""torch's losses of single numbers, for labels that count with weights of their own."""


def loss_named(name: str, options: Mapping[str, Any] | None = None) -> tuple[Loss, dict[str, Any]]:
    """Return a registered loss, and its options.

    Raises
    ------
    ConfigError
        If the name or an option is unknown.

    Examples
    --------
    >>> loss, options = loss_named("margin", {"margin": 0.5})
    >>> options
    {'margin': 0.5}
    """
    check_choice("regression loss", name, LOSSES)
    loss: Loss = LOSSES[name]
    given = dict(options or {})
    known = list(inspect.signature(loss).parameters)[2:]
    refuse_unknown(f"option of the loss {name!r}", given, known)
    return loss, given


def ranks_a_batch(name: str) -> bool:
    """Return whether a loss compares the samples of a batch with each other.

    Examples
    --------
    >>> ranks_a_batch("listmle"), ranks_a_batch("mse")
    (True, False)
    """
    loss: Loss = LOSSES[name]
    if hasattr(loss, "ranks"):
        return bool(loss.ranks)
    # one of a user is tried: the loss of a batch is the sum of those of its samples, or it is not
    # with numbers, also where a model is being built without any
    with torch.device("cpu"), torch.no_grad():
        prediction = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)
        target = torch.tensor([1.0, -0.5, 0.2, -2.0], dtype=torch.float64)
        whole = torch.as_tensor(loss(prediction, target))
        rows = zip(prediction.split(1), target.split(1), strict=True)
        alone = torch.stack([torch.as_tensor(loss(p, t)) for p, t in rows]).sum()
    return not bool(torch.isclose(whole, alone, rtol=1e-6, atol=1e-9))


def _ranking(loss: Loss) -> Loss:
    """Mark a loss that compares samples of a batch; of fewer than two it is 0."""

    def of_several(prediction: Row, target: Row, **options: float) -> torch.Tensor:
        if len(prediction) < 2:
            return prediction.sum() * 0.0  # with a graph
        return loss(prediction, target, **options)

    of_several.ranks = True  # type: ignore[attr-defined]  # a note
    of_several.__doc__ = loss.__doc__
    of_several.__qualname__ = of_several.__name__ = loss.__name__  # where it can be imported
    of_several.__signature__ = inspect.signature(loss)  # type: ignore[attr-defined]  # for `loss_named`
    return of_several


def mse(prediction: Row, target: Row) -> torch.Tensor:
    """Return the sum of squared errors."""
    return functional.mse_loss(prediction, target, reduction="sum")


def mae(prediction: Row, target: Row) -> torch.Tensor:
    """Return the sum of absolute errors."""
    return functional.l1_loss(prediction, target, reduction="sum")


def huber(prediction: Row, target: Row, delta: float = 1.0) -> torch.Tensor:
    """Return the sum of errors that count squared up to `delta`, and linearly above."""
    return functional.huber_loss(prediction, target, reduction="sum", delta=delta)


@_ranking
def listmle(prediction: Row, target: Row) -> torch.Tensor:
    r"""Return the negative log likelihood of the order of the labels, best first.

    .. math:: \sum_i \log \sum_{j \ge i} \exp s_j - s_i

    over predictions :math:`s` in the order of the labels. Equal labels have no order among each
    other, so the likeliest one counts.

    References
    ----------
    Xia et al. 2008, "Listwise approach to learning to rank", ICML 25.

    Examples
    --------
    >>> listmle(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.1269)
    """
    by_prediction = torch.argsort(prediction.detach(), descending=True, stable=True)
    order = by_prediction[torch.argsort(target[by_prediction], descending=True, stable=True)]
    scores = prediction[order]
    after = torch.logcumsumexp(scores.flip(0), 0).flip(0)
    return (after - scores).sum()


@_ranking
def margin(prediction: Row, target: Row, margin: float = 1.0) -> torch.Tensor:
    r"""Return the mean over pairs of :math:`\max(0, m - (s_i - s_j))` where label i is higher.

    It is multiplied by the number of labels, as a sum over these has to be.

    Parameters
    ----------
    prediction, target
        Of the batch.
    margin
        Distance in deviations of the labels that predictions of a pair should have.

    References
    ----------
    Joachims 2002, "Optimizing search engines using clickthrough data", KDD.
    """
    higher = target[:, None] > target[None, :]
    short = (margin - (prediction[:, None] - prediction[None, :])).clamp_min(0)
    return (short * higher).sum() / higher.sum().clamp_min(1) * len(prediction)


@_ranking
def pairwise(prediction: Row, target: Row) -> torch.Tensor:
    r"""Return the mean over pairs of :math:`-\log \sigma(s_i - s_j)` where label i is higher.

    It is multiplied by the number of labels, as a sum over these has to be.

    References
    ----------
    Bradley and Terry 1952, Biometrika 39; Burges et al. 2005 (RankNet), ICML 22.
    """
    higher = target[:, None] > target[None, :]
    short = functional.softplus(prediction[None, :] - prediction[:, None])
    return (short * higher).sum() / higher.sum().clamp_min(1) * len(prediction)


@_ranking
def spearman(prediction: Row, target: Row, temperature: float = 0.1) -> torch.Tensor:
    r"""Return 1 minus the correlation of soft ranks with the ranks of the labels.

    The soft rank of a prediction is :math:`\sum_j \sigma((s_i - s_j) / t)` over predictions brought
    to deviation 1. It is multiplied by the number of labels, as a sum over these has to be.

    Parameters
    ----------
    prediction, target
        Of the batch.
    temperature
        Width of a step between two ranks, in deviations of the predictions: small ones are nearer
        to Spearman's correlation, and have gradients between near neighbours alone.

    References
    ----------
    Qin et al. 2010, "A general approximation framework for direct optimization of information
    retrieval measures", Information Retrieval 13.
    """
    scaled = (prediction - prediction.mean()) / (prediction.std(correction=0) + 1e-6)
    soft = torch.sigmoid((scaled[:, None] - scaled[None, :]) / temperature).sum(1)
    # ranks of equal labels are their mean
    below = (target[:, None] > target[None, :]).to(soft)
    ranks = below.sum(1) + 0.5 * (target[:, None] == target[None, :]).to(soft).sum(1)
    soft, ranks = soft - soft.mean(), ranks - ranks.mean()
    correlation = (soft * ranks).sum() / (soft.norm() * ranks.norm() + 1e-6)
    return (1 - correlation) * len(prediction)
