"""Predict masked residues, as BERT and ESM do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from molfun.errors import ConfigError
from molfun.objectives.base import Objective, ObjectiveOutput, need
from molfun.strict import Configured


class MaskedLMObjective(Configured, Objective):
    """Hide residues and predict them from the rest.

    Of the residues of a sequence a share `mask_ratio` is selected; of these a share `mask_share`
    becomes ``<mask>``, `random_share` a random amino acid, and the rest stays as it is. The loss is
    the cross entropy of the selected residues. In validation the selection depends on the sample
    alone, so that perplexities of different epochs and models compare.

    Parameters
    ----------
    mask_ratio
        Share of the residues that is selected; at least one of each sequence is.
    mask_share, random_share
        Shares of the selected residues; they sum to at most 1.

    References
    ----------
    Devlin et al. 2019 (BERT), section 3.1; Lin et al. 2023 (ESM-2), supplement A.2.

    Examples
    --------
    >>> objective = MaskedLMObjective(mask_ratio=0.2)
    >>> objective.metrics(loss=2.0, sums={"right": 30.0}, n_labels=100)["accuracy"]
    0.3
    """

    name = "masked_lm"
    metric_names = ("perplexity", "accuracy")
    higher_is_better = frozenset({"accuracy"})

    def __init__(
        self, *, mask_ratio: float = 0.15, mask_share: float = 0.8, random_share: float = 0.1
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio <= 1:
            raise ConfigError(f"mask_ratio must be above 0 and at most 1, got {mask_ratio}.")
        if mask_share < 0 or random_share < 0 or mask_share + random_share > 1:
            raise ConfigError(
                f"mask_share and random_share must be 0 or more and sum to at most 1, got "
                f"{mask_share} and {random_share}."
            )
        self.keep_arguments(locals())
        self._mask_token = 0
        self._residues = torch.zeros(0, dtype=torch.int64)

    def check(self, backbone: nn.Module) -> None:
        """Need ``token_logits``, ``mask_token`` and ``residue_tokens`` of the backbone."""
        needed = ("token_logits", "mask_token", "residue_tokens")
        need(self.name, backbone, "a language model", needed)
        self._mask_token = int(backbone.mask_token)  # type: ignore[arg-type]  # by name
        self._residues = torch.as_tensor(backbone.residue_tokens)

    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """Add ``selected`` (indices into the tokens) and ``labels`` (their true tokens).

        Only known amino acids are selected: there is nothing to learn about X or ``<mask>``.
        """
        places = features["residues"]
        places = places[torch.isin(features["tokens"][places], self._residues)]
        n = len(places)
        if n == 0:
            nothing = places.new_zeros(0)
            return {**features, "selected": nothing, "labels": nothing}
        draw = torch.rand(n, generator=generator)
        ratio = self._config["mask_ratio"]
        chosen = draw < ratio
        if not bool(chosen.any()):
            chosen[draw.argmin()] = True
        selected = places[chosen]
        tokens = features["tokens"].clone()
        labels = tokens[selected]
        fate = torch.rand(len(selected), generator=generator)
        other = self._residues[
            torch.randint(len(self._residues), (len(selected),), generator=generator)
        ]
        masked = fate < self._config["mask_share"]
        replaced = ~masked & (fate < self._config["mask_share"] + self._config["random_share"])
        written = torch.where(masked, torch.full_like(labels, self._mask_token), labels)
        tokens[selected] = torch.where(replaced, other, written)
        return {**features, "tokens": tokens, "selected": selected, "labels": labels}

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Return the cross entropy of the selected residues."""
        logits = backbone.token_logits(batch, batch["selected"]).float()
        labels = batch["labels"]
        total = functional.cross_entropy(logits, labels, reduction="sum")
        right = int((logits.detach().argmax(-1) == labels).sum())
        return ObjectiveOutput(total, len(labels), {"right": float(right)})

    def metrics(self, loss: float, sums: Mapping[str, float], n_labels: int) -> dict[str, float]:
        """Return perplexity and share of right residues, over the selected ones."""
        if n_labels == 0:
            return dict.fromkeys(self.metric_names, math.nan)
        return {
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": sums.get("right", 0.0) / n_labels,
        }
