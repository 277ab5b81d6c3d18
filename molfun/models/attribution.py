"""Contribution of each residue to a prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from molfun.errors import ConfigError
from molfun.models.assembly import AssembledModel, autocast
from molfun.models.loaders import all_samples, refuse_nothing
from molfun.nn.modes import evaluating
from molfun.nn.process import settled
from molfun.sample import Sample
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs
from molfun.training.task_head import TaskHead
from molfun.trunk import TrunkOutput

AT_ONCE = 16
"""Copies of a sample, each without one residue, that the head reads together."""
ONE_OF_SEVERAL = ("binary", "multiclass")
"""Tasks whose outputs are the logits of classes, one of which is predicted."""


@settled()
def residue_attributions(
    model: AssembledModel, data: Any, *, head: str | None = None
) -> list[np.ndarray]:
    r"""Return how much each residue contributes to the prediction of its sample.

    The contribution of residue :math:`i` is the change of the prediction when its vector is left
    out of the pooling,

    .. math:: a_i = f(s_1, \dots, s_n) - f(s_1, \dots, s_{i-1}, s_{i+1}, \dots, s_n),

    where :math:`s` is the single representation of the whole sample: the trunk runs once, the head
    n times. It is an exact difference and not a gradient: heads that normalise each residue do not
    change when its vector is scaled, so that gradient times input is 0 for them everywhere. For a
    linear head on a mean the contributions sum to 0, since they are relative to the mean residue.

    A vector of the trunk knows of its neighbours, so a large contribution says where the prediction
    is read off, and not which mutation would change it.

    Parameters
    ----------
    model
        A trained `MolfunStructureModel` with a head that pools residues.
    data
        Samples, as `MolfunStructureModel.predict` takes them.
    head
        Name of the head, where there are several; None takes the first.

    Returns
    -------
    list of ndarray
        (residues,) per sample, cropped as the model reads it. In the units of the label for
        regression, in log odds of the predicted class for classes. NaN for a single residue.

    Raises
    ------
    ConfigError
        If the head gives no single label per sample, or does not pool residues.

    Examples
    --------
    >>> from molfun import MolfunStructureModel, SequenceDataset
    >>> model = MolfunStructureModel("esm2_tiny", head="linear", device="cpu")
    >>> found = residue_attributions(model, SequenceDataset.from_list(["MKVL"]))
    >>> found[0].shape, bool(abs(found[0].sum()) < 1e-5)
    ((4,), True)
    """
    part = _part(model, head)
    samples = all_samples(data)
    refuse_nothing(samples)
    model.check(samples)
    forward = ForwardPass(model.backbone, ("single",), device=model.device, reader="attributions")
    with torch.no_grad(), autocast(model), evaluating(model.backbone, part.head):
        return [_attributed(part, _trunk(forward, part, sample)) for sample in samples]


def _trunk(forward: ForwardPass, part: TaskHead, sample: Sample) -> TrunkOutput:
    # without "mean" and "cls", which a head pools again from the residues that are left
    found = forward.whole(Inputs.of([sample])).select(["single"])
    return part.head.with_samples(found, [sample])


def _part(model: AssembledModel, name: str | None) -> TaskHead:
    """Return the head, or refuse one whose prediction is no pooled number."""
    known = {part.name: part for part in model.heads}
    if not known:
        raise ConfigError("The model has no head, and so no prediction to explain.")
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise ConfigError(f"There is no head {name!r}; the heads are {', '.join(sorted(known))}.")
    part = known[chosen]
    if not _pools(part):
        raise ConfigError(
            f"The head {part.head_name or type(part.head).__name__!r} does not pool residues into "
            f"one label per sample, so none of them can be left out."
        )
    if part.task.n_outputs > 1 and part.task_name not in ONE_OF_SEVERAL:
        raise ConfigError("Attributions are those of one number, and this head predicts several.")
    return part


def _pools(part: TaskHead) -> bool:
    reads_residues = set(part.head.needs) <= {"single", "mean"}
    return reads_residues and part.task.level == "sequence" and not part.head.in_backbone


def _attributed(part: TaskHead, trunk: TrunkOutput) -> np.ndarray:
    """Return the contributions of the residues of one sample."""
    places = trunk.mask[0].bool().nonzero().squeeze(1)
    if len(places) < 2:  # without its only residue a sample is nothing
        return np.full(len(places), np.nan)
    value = _value_of(part, trunk)
    whole = value(trunk)
    rest = torch.cat([value(_without(trunk, some)) for some in places.split(AT_ONCE)])
    found: np.ndarray = (whole - rest).double().cpu().numpy()
    return found


def _value_of(part: TaskHead, trunk: TrunkOutput) -> Callable[[TrunkOutput], torch.Tensor]:
    """Return the function that is explained: the prediction, or the log odds of a class."""
    if part.task_name not in ONE_OF_SEVERAL:
        return lambda one: part.task.predictions(part.head(one)).float()
    chosen = int(part.head(trunk)["prediction"][0].argmax())

    def log_odds(one: TrunkOutput) -> torch.Tensor:
        log_p = part.head(one)["prediction"].float().log_softmax(-1)[:, chosen]
        return log_p - torch.log(-torch.expm1(log_p).clamp(max=-1e-12))

    return log_odds


def _without(trunk: TrunkOutput, places: torch.Tensor) -> TrunkOutput:
    """Return one copy of a sample per place, without the residue there."""
    n = len(places)
    mask = trunk.mask.repeat(n, 1)
    mask[torch.arange(n, device=mask.device), places] = 0
    # the score of a variant is that of the whole sequence
    score = None if trunk.score is None else trunk.score.expand(n)
    single = trunk.need("single").expand(n, -1, -1)
    return replace(trunk, mask=mask, single=single, score=score)
