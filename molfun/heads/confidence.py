"""Logistic or linear regression on the confidence of a predicted complex."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import nn

from molfun._shapes import Float, Int64
from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.protein import CHAIN_GAP
from molfun.strict import Configured, check_choice
from molfun.trunk import Level, TrunkOutput

logger = logging.getLogger(__name__)

Partner = Literal["shortest", "first", "last"]
FEATURES = (
    "plddt", "plddt_rest", "plddt_partner",
    "pae_rest", "pae_partner", "pae_rest_partner", "pae_partner_rest", "ptm",
)  # fmt: skip
"""Inputs of the regression, in order.

Means over all residues, the `partner` chain (a peptide) and the rest (its receptor):
``pae_rest_partner`` is the error of the partner's residues where frames of the rest are aligned.
"""
N_PLDDT = 3
PLDDT_SCALE, PAE_SCALE = 100.0, 32.0
"""Largest values, by which the inputs are divided."""


class ConfidenceHead(Configured, Head):
    """One linear layer on pLDDT, predicted aligned error and pTM; with two classes, a classifier.

    Whether a peptide binds shows in how sure the model is of its place: the mean aligned error
    between peptide and receptor separates binders from others, better after fine-tuning. Chains are
    told by jumps of the residue index. A sample of one chain counts as partner and rest at once.

    Inputs are brought to mean 0 and deviation 1 over the training set where the backbone is frozen;
    one that is the same for all samples has no say. Presets without a TM head give pLDDT alone.

    Parameters
    ----------
    partner
        Chain that is told from the rest: ``"shortest"`` (of equal ones the last), ``"first"`` or
        ``"last"``.
    n_outputs
        Numbers for each label; the facade takes it from the task.
    level
        Only ``"sequence"``.

    References
    ----------
    Motmaen et al. 2023, "Peptide-binding specificity prediction using fine-tuned protein structure
    prediction networks", PNAS 120, e2216697120.

    Examples
    --------
    >>> head = ConfidenceHead(n_outputs=2)
    >>> sum(p.numel() for p in head.parameters())
    18
    """

    needs = ("structure",)
    default_task = "binary"
    input_mean: torch.Tensor
    input_std: torch.Tensor
    inputs_fitted: torch.Tensor

    def __init__(
        self, *, partner: Partner = "shortest", n_outputs: int = 1, level: Level = "sequence"
    ) -> None:
        super().__init__()
        check_choice("partner", partner, get_args(Partner))
        if level != "sequence":
            raise ConfigError(
                f"The head 'confidence' gives a label for each complex, the task wants one for "
                f"each {level}. Set task_config={{'level': 'sequence'}}."
            )
        self.keep_arguments(locals())
        self.partner, self.n_outputs = partner, n_outputs
        self.register_buffer("input_mean", torch.zeros(len(FEATURES)))
        self.register_buffer("input_std", torch.ones(len(FEATURES)))
        self.register_buffer("inputs_fitted", torch.tensor(data=False))
        self.regression = nn.Linear(len(FEATURES), n_outputs)
        self._told = False

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Give ``prediction``: (batch, n_outputs), the last left out if it is 1."""
        with torch.autocast(trunk.mask.device.type, enabled=False):
            x = (self.features(trunk) - self.input_mean) / self.input_std
            return self.as_outputs(self.regression(x), self.n_outputs)

    def features(self, trunk: TrunkOutput) -> Float[torch.Tensor, "batch features"]:
        """Return the inputs named in `FEATURES`, each from 0 to 1.

        Raises
        ------
        ConfigError
            If the backbone predicts no structure.
        """
        trunk.need("structure")
        structure: Mapping[str, torch.Tensor] = trunk.structure or {}
        mask = trunk.mask.float()
        partner, rest = _parts(structure["residue_index"].long(), mask, self.partner)
        plddt = structure["plddt"].float() / PLDDT_SCALE
        found = [_mean(plddt, part) for part in (mask, rest, partner)]
        if "pae" not in structure:
            self._tell()
            found += [torch.zeros_like(found[0])] * (len(FEATURES) - N_PLDDT)
            return torch.stack(found, dim=-1)
        pae = structure["pae"].float() / PAE_SCALE
        pairs = (rest, rest), (partner, partner), (rest, partner), (partner, rest)
        found += [_mean_of_pairs(pae, rows, columns) for rows, columns in pairs]
        return torch.stack([*found, structure["ptm"].float()], dim=-1)

    def _tell(self) -> None:
        if not self._told:
            logger.warning("The preset has no TM head: the head 'confidence' reads pLDDT alone.")
            self._told = True

    @torch.no_grad()
    def fit_inputs(self, trunks: Iterable[TrunkOutput]) -> None:
        """Take mean and deviation of each input over the training set, the first time only."""
        if self.inputs_fitted:
            return
        found = [self.features(trunk).double() for trunk in trunks]
        if len(found) < 2:
            return
        x = torch.cat(found)
        std = x.std(0, unbiased=False)
        self.input_mean.copy_(x.mean(0))
        self.input_std.copy_(torch.where(std > 1e-6, std, torch.inf))
        self.inputs_fitted.fill_(value=True)


def _parts(
    residue_index: Int64[torch.Tensor, "batch length"],
    mask: Float[torch.Tensor, "batch length"],
    which: Partner,
) -> tuple[Float[torch.Tensor, "batch length"], Float[torch.Tensor, "batch length"]]:
    """Return masks of the partner chain and of the rest; both are all residues of one chain."""
    jumps = residue_index.diff(dim=-1) >= CHAIN_GAP
    chain = nn.functional.pad(jumps.long().cumsum(-1), (1, 0))
    members = nn.functional.one_hot(chain).to(mask.dtype) * mask.unsqueeze(-1)
    sizes = members.sum(1)
    absent = sizes == 0
    if which == "first":
        chosen = torch.zeros_like(sizes[:, 0], dtype=torch.long)
    elif which == "last":
        chosen = (~absent).sum(-1) - 1
    else:
        # from the end, since `argmin` takes the first of equal ones
        backwards = sizes.masked_fill(absent, torch.inf).flip(-1)
        chosen = sizes.shape[-1] - 1 - backwards.argmin(-1)
    partner = members.gather(-1, chosen[:, None, None].expand(-1, members.shape[1], 1)).squeeze(-1)
    alone = (absent.logical_not().sum(-1) < 2).unsqueeze(-1)
    return torch.where(alone, mask, partner), torch.where(alone, mask, mask - partner)


def _mean(
    x: Float[torch.Tensor, "batch length"], part: Float[torch.Tensor, "batch length"]
) -> Float[torch.Tensor, "batch"]:
    # the padding is replaced and not multiplied by 0, which would keep an infinity in it
    return torch.where(part > 0, x, 0.0).sum(-1) / part.sum(-1).clamp(min=1)


def _mean_of_pairs(
    x: Float[torch.Tensor, "batch length length"],
    rows: Float[torch.Tensor, "batch length"],
    columns: Float[torch.Tensor, "batch length"],
) -> Float[torch.Tensor, "batch"]:
    pairs = rows[:, :, None] * columns[:, None, :]
    return torch.where(pairs > 0, x, 0.0).sum((-1, -2)) / pairs.sum((-1, -2)).clamp(min=1)
