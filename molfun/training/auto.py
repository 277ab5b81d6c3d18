"""Choose a strategy by the size of the data set."""

from __future__ import annotations

import logging

from molfun.training.base import FinetuneStrategy
from molfun.training.full import FullFinetune
from molfun.training.head_only import HeadOnlyFinetune
from molfun.training.lora import LoRAFinetune

logger = logging.getLogger(__name__)


def choose_strategy(n_samples: int) -> FinetuneStrategy:
    """Follow the decision tree of the guide; its ranges overlap, LoRA is taken where they do.

    Fewer than 100 samples: head only. Up to 10,000: LoRA (rank 4, 8 or 16). More: full.

    Examples
    --------
    >>> choose_strategy(40).name, choose_strategy(500).rank, choose_strategy(20_000).name
    ('head_only', 8, 'full')
    """
    strategy, why = recommend(n_samples)
    logger.info("Strategy chosen for %d samples: %s (%s).", n_samples, strategy.name, why)
    return strategy


def recommend(n_samples: int) -> tuple[FinetuneStrategy, str]:
    """The strategy for a number of samples, and why.

    Examples
    --------
    >>> recommend(40)[1]
    'fewer than 100 samples'
    """
    if n_samples < 100:
        return HeadOnlyFinetune(), "fewer than 100 samples"
    if n_samples <= 10_000:
        rank = 4 if n_samples < 200 else 8 if n_samples <= 2000 else 16
        return LoRAFinetune(rank=rank), f"100 to 10,000 samples, rank {rank} for this many"
    return FullFinetune(ema_decay=0.999), "more than 10,000 samples"
