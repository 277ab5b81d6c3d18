"""Plan the memory of a training step on the longest sample, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from molfun.backbones.base import Backbone
from molfun.backbones.planning import BlockCosts, MemoryPlan, MemoryPlanning
from molfun.backbones.splitting import frozen_blocks
from molfun.data.batching import LengthBatchSampler, lengths_of
from molfun.errors import ConfigError
from molfun.models.loaders import samples_of
from molfun.nn import allocator
from molfun.sample import Sample
from molfun.text import counted, megabytes

logger = logging.getLogger(__name__)

SHARE = 0.9
"""Part of the free memory that a planned step may take; the model of its peak is not exact."""
BYTES_A_WEIGHT = 16
"""Bytes per trainable weight in float32: gradient, two moments of AdamW, moving average."""


def plan(
    backbone: Backbone, loader: Any, device: torch.device, *, trained: int, reserved: int = 0
) -> None:
    """Ask the backbone which activations to keep, and warn if no choice fits.

    Parameters
    ----------
    backbone
        Set up for training.
    loader
        The training data; nothing is planned for data that is not made of samples.
    device
        Device of the step.
    trained
        Number of weights that train.
    reserved
        Bytes that something else will take, such as a cache.
    """
    found = forecast(backbone, loader, device, trained=trained, reserved=reserved)
    if found is not None:
        logger.log(logging.INFO if found.fits else logging.WARNING, "%s", found.text)


@dataclass(frozen=True)
class Forecast:
    """Memory that a step will take: whether it fits, in words, and in bytes."""

    fits: bool
    text: str
    peak: int
    free: int


def forecast(
    backbone: Backbone, loader: Any, device: torch.device, *, trained: int, reserved: int = 0
) -> Forecast | None:
    """Return the memory of a step with the choice of the backbone; None if nothing is known.

    A backbone without a choice is asked for what its blocks keep.

    Parameters are those of `plan`; the backbone keeps its choice until `forget`.
    """
    if not isinstance(backbone, MemoryPlanning | BlockCosts):
        return None
    forget(backbone)
    sample, length, size = heaviest_batch(loader)
    free = free_bytes(device)
    if sample is None or free is None:
        return None
    available = max(0, int(SHARE * free) - BYTES_A_WEIGHT * trained - reserved)
    found = _planned(backbone, sample, size, available)
    what = (
        f"A step on {size} of the longest samples" if size > 1 else "A step on the longest sample"
    )
    unit = " residues" if sample.protein is not None or sample.sequence is not None else ""
    text = (
        f"{what} ({sample.id}: {length}{unit}) takes about "
        f"{megabytes(found.peak)}, {megabytes(free)} are free: {found.how}."
    )
    fits = found.peak <= available
    if not fits:
        text += f" It may not fit: {_advice(found, size)}."
    return Forecast(fits, text, found.peak, free)


def _planned(backbone: Backbone, sample: Sample, size: int, available: int) -> MemoryPlan:
    """Return the plan of the backbone; for one without a choice, what its blocks keep."""
    if isinstance(backbone, MemoryPlanning):
        return backbone.plan_memory(sample, size, available)
    assert isinstance(backbone, BlockCosts)
    trained = len(backbone.blocks()) - frozen_blocks(backbone)
    # while a block runs, forward or backward, there is once more what it keeps
    peak = (trained + 1) * size * backbone.block_bytes(sample)
    return MemoryPlan(peak, f"activations of {counted(trained, 'block')} are kept")


def forget(backbone: Backbone) -> None:
    """Undo what `plan` let the backbone choose."""
    if isinstance(backbone, MemoryPlanning):
        backbone.forget_plan()


def _advice(found: MemoryPlan, size: int) -> str:
    lower = ["the batch size"] if size > 1 else []
    if found.fits_up_to:
        lower.append(f"max_length (to {found.fits_up_to} residues)")
    lower.append("the number of blocks that train")
    return f"lower {' or '.join(lower)}"


def heaviest_batch(loader: Any) -> tuple[Sample | None, int, int]:
    """Return the longest sample of the heaviest batch, its length, and the size of that batch.

    The sample is None if lengths are not known.
    """
    dataset = loader.dataset if isinstance(loader, DataLoader) else loader
    samples: Any = dataset
    try:
        lengths = lengths_of(dataset)
    except ConfigError:
        samples = list(samples_of([loader]))
        lengths = np.array([_length(sample) for sample in samples])
    if len(lengths) == 0 or not lengths.max():
        return None, 0, 0
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, LengthBatchSampler):
        place, size = sampler.heaviest()
    else:
        place, size = int(lengths.argmax()), largest_batch(loader)
    # the sample itself, since a plan needs its alignment depth besides its length
    item = samples[place]
    return (item, int(lengths[place]), size) if isinstance(item, Sample) else (None, 0, 0)


def _length(sample: Sample) -> int:
    return len(sample.protein) if sample.protein is not None else 0


def largest_batch(loader: Any) -> int:
    """Return the number of samples in the largest batch."""
    if isinstance(loader, DataLoader):
        if loader.batch_size is not None:
            return int(loader.batch_size)
        size = getattr(loader.batch_sampler, "batch_size", None)
        return int(size) if size else 1
    batches: Iterable[Any] = loader if isinstance(loader, list) else []
    return max((len(b) for b in batches if isinstance(b, Sized)), default=1)


# Free memory


CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on `device`; None if the system does not say.

    On a CPU this is the kernel's estimate without swapping, or what the container's control group
    leaves if that is less. Buffers that the process has freed but kept are returned first.
    """
    if device.type == "cuda":
        # torch's caching allocator holds on to freed blocks, which the driver reports as used
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    allocator.trim()
    found = [n for n in (_of_machine(), _of_group()) if n is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_group() -> int | None:
    """Return the limit of the control group (version 2) less the memory that cannot be reclaimed.

    A limit on a parent group is not looked at.
    """
    limit, used = _read(CGROUP / "memory.max").strip(), _read(CGROUP / "memory.current").strip()
    if not limit.isdigit() or not used.isdigit():  # "max" is no limit
        return None
    # the kernel drops cached files when a process asks for memory
    files = [
        int(line.split()[1])
        for line in _read(CGROUP / "memory.stat").splitlines()
        if line.startswith("inactive_file ")
    ]
    return max(0, int(limit) - int(used) + sum(files))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
