"""Choose how several processes share a model."""

from __future__ import annotations

import torch

from molfun.errors import ConfigError
from molfun.parallel.base import Parallel, Replicated
from molfun.parallel.ranks import Ranks
from molfun.parallel.started import Way


def parallel_of(ranks: Ranks, name: Way, device: torch.device, precision: str) -> Parallel:
    """Return the way to train on these processes.

    Parameters
    ----------
    ranks
        The processes.
    name
        "auto" is "ddp". A process alone has the whole model in any case.
    device, precision
        Of the model, and Fabric's name of the precision.

    Raises
    ------
    ConfigError
        If the precision cannot be had with a divided model.
    """
    if ranks.size == 1:
        return Parallel(ranks)
    if name in ("auto", "ddp"):
        return Replicated(ranks)
    if precision == "16-mixed":
        raise ConfigError(
            f"parallel={name!r} has no loss scaling for float16. Train in bf16 or fp32, or with "
            f"parallel='ddp'."
        )
    from molfun.parallel.sharded import Sharded  # here, as torch's FSDP takes a second to import

    return Sharded(ranks, device, precision, offload=name == "fsdp2_offload")
