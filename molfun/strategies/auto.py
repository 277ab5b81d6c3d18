"""Choose a strategy by the size of the data set."""

from __future__ import annotations

import logging

from molfun.strategies.base import FinetuneStrategy
from molfun.strategies.full import FullFinetune
from molfun.strategies.head_only import HeadOnlyFinetune
from molfun.strategies.lora import LoRAFinetune
from molfun.strategies.partial import PartialFinetune

logger = logging.getLogger(__name__)


def choose_strategy(
    n_samples: int, n_blocks: int = PartialFinetune.unfreeze_last_n
) -> FinetuneStrategy:
    """Choose a strategy by the number of labelled samples.

    Fewer than 100 samples: head only. Up to 5,000: LoRA (rank 4, 8 or 16). Up to 10,000: the last
    four blocks. More: full. The ranges that the README recommends for LoRA and partial
    overlap from 1,000 to 5,000; LoRA is taken there.

    Parameters
    ----------
    n_samples
        Samples with a label in the training set.
    n_blocks
        Blocks of the backbone; partial trains no more.

    Examples
    --------
    >>> choose_strategy(40).name, choose_strategy(500).rank, choose_strategy(20_000).name
    ('head_only', 8, 'full')
    >>> choose_strategy(7000, n_blocks=2).unfreeze_last_n
    2
    """
    strategy, why = recommend(n_samples, n_blocks)
    logger.info("Strategy chosen for %d samples: %s (%s).", n_samples, strategy.name, why)
    return strategy


def recommend(
    n_samples: int, n_blocks: int = PartialFinetune.unfreeze_last_n
) -> tuple[FinetuneStrategy, str]:
    """Return the strategy for a number of samples, and why.

    Examples
    --------
    >>> recommend(40)[1]
    'fewer than 100 samples'
    """
    if n_samples < 100:
        return HeadOnlyFinetune(), "fewer than 100 samples"
    if n_samples <= 5000:
        rank = 4 if n_samples < 200 else 8 if n_samples <= 2000 else 16
        return LoRAFinetune(rank=rank), f"100 to 5,000 samples, rank {rank} for this many"
    if n_samples <= 10_000:
        last = min(PartialFinetune.unfreeze_last_n, n_blocks)
        return PartialFinetune(unfreeze_last_n=last), "5,000 to 10,000 samples"
    return FullFinetune(ema_decay=0.999), "more than 10,000 samples"
