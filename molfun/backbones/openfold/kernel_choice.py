"""Choose between openfold's code and Molfun's faster one, after comparing both on this machine.

A kernel that is wrong on one machine can spoil a run unnoticed: boltz issue 391 reports an RMSD of
14 instead of 2 angstrom with a triangle kernel on an RTX 4090.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from molfun.backbones.kernels import KERNELS_SWITCH, Kernels
from molfun.backbones.openfold import fast
from molfun.errors import ConfigError
from molfun.nn import attention, cuequivariance, kernels, tiled

logger = logging.getLogger(__name__)

CUEQUIVARIANCE_SWITCH = "MOLFUN_CUEQUIVARIANCE"
"""Environment variable: ``on`` asks for NVIDIA's triangle kernels on a GPU."""
TOLERANCE = 1e-4
"""Largest relative difference to openfold's code that is accepted in float32. Right code differs by
about 4e-7 per block, wrong code by far more."""
TF32_TOLERANCE = 1e-2
"""The same for NVIDIA's kernels, whose products are in TF32 (10 bits of mantissa)."""


def install_tested(model: Any, wanted: Kernels) -> Literal["stock", "fast"]:
    """Install the wanted implementation in an ``AlphaFold``, and return the one that runs then.

    ``"auto"`` means ``"fast"``, unless the environment variable ``MOLFUN_KERNELS`` is ``stock`` or
    the test fails, which is logged.

    Raises
    ------
    ConfigError
        If ``"fast"`` gives other numbers on this machine, or NVIDIA's kernels are asked for and are
        missing or give other numbers.
    """
    fast.remove(model)
    if wanted == "stock" or (wanted == "auto" and os.environ.get(KERNELS_SWITCH) == "stock"):
        return "stock"
    error = self_test(model)
    if error <= TOLERANCE:
        by_nvidia = os.environ.get(CUEQUIVARIANCE_SWITCH) == "on"
        if by_nvidia:
            _check_cuequivariance(model)
        logger.debug("fast kernels, by openfold's class: %s", fast.install(model))
        fast.set_cuequivariance(model, by_nvidia)
        return "fast"
    if wanted == "fast":
        raise ConfigError(
            f"The fast kernels differ from openfold's by {error:.1e} on this machine (allowed: "
            f"{TOLERANCE:.0e}). Use kernels='stock'."
        )
    logger.warning(
        "The fast kernels differ from openfold's by %.1e on this machine (allowed: %.0e); "
        "openfold's own code runs.",
        error,
        TOLERANCE,
    )
    return "stock"


def _check_cuequivariance(model: Any) -> None:
    """Refuse NVIDIA's triangle kernels if they are missing or give other numbers."""
    problem = cuequivariance.problem()
    if not problem and next(model.parameters()).device.type != "cuda":
        problem = "the model is not on a GPU"
    if problem:
        raise ConfigError(
            f"{CUEQUIVARIANCE_SWITCH}=on, but {problem}. Unset it, or install molfun[cueq] on "
            f"a machine with a GPU."
        )
    # at the length from which they run: below it the test would compare our own code
    error = self_test(model, length=cuequivariance.SHORTEST, with_cuequivariance=True)
    if not error <= TF32_TOLERANCE:  # also true for NaN
        raise ConfigError(
            f"cuequivariance_torch differs from openfold by {error:.1e} on this GPU (allowed: "
            f"{TF32_TOLERANCE:.0e}). Unset {CUEQUIVARIANCE_SWITCH}."
        )


def self_test(model: Any, *, length: int = 11, with_cuequivariance: bool = False) -> float:
    """Return the largest relative difference in outputs and gradients of one Evoformer block.

    The first block of the ``AlphaFold`` runs with both implementations on random inputs of that
    length, masked in part: once with a shallow alignment, and once with a deep one and small tiles,
    so that the code paths of long proteins are tested as well.
    """
    # 11 residues and 3 rows: no multiple of a tile or vector, and milliseconds per model
    plain = _difference(model, length, 3, with_cuequivariance)
    with _small_tiles():
        return max(plain, _difference(model, length, fast.SHALLOW + 1, with_cuequivariance))


@contextlib.contextmanager
def _small_tiles() -> Iterator[None]:
    """Shrink the tiles, so that a small input is divided like a large one."""
    before = fast.ROWS, fast.TOKENS, tiled.TILE, kernels.TILE, attention.SMALL_BYTES
    fast.ROWS = fast.TOKENS = tiled.TILE = kernels.TILE = 50
    attention.SMALL_BYTES = 0
    try:
        yield
    finally:
        fast.ROWS, fast.TOKENS, tiled.TILE, kernels.TILE, attention.SMALL_BYTES = before


def _difference(model: Any, length: int, rows: int, with_cuequivariance: bool) -> float:
    block = model.evoformer.blocks[0]
    weight = next(block.parameters())
    if weight.dtype != torch.float32:
        return 0.0  # the fast classes leave other precisions to openfold
    modes = [module.training for module in block.modules()]
    # a generator of its own: a test must not advance the program's
    generator = torch.Generator().manual_seed(0)
    config = model.config.evoformer_stack
    msa = torch.randn(1, rows, length, config.c_m, generator=generator).to(weight.device)
    pair = torch.randn(1, length, length, config.c_z, generator=generator).to(weight.device)
    mask = torch.ones(1, length, device=weight.device)
    mask[:, -3:] = 0  # padding, which must not reach the other residues
    masks = {
        "msa_mask": mask.unsqueeze(1).expand(-1, rows, -1),
        "pair_mask": mask.unsqueeze(1) * mask.unsqueeze(2),
    }

    def counted(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Set padding to zero: nothing reads it, and every kernel leaves other values there."""
        pairs = zip(outputs, (masks["msa_mask"], masks["pair_mask"]), strict=True)
        return [t * m.unsqueeze(-1) for t, m in pairs]

    def run() -> list[torch.Tensor]:
        inputs = [t.clone().requires_grad_() for t in (msa, pair)]
        with torch.enable_grad():
            outputs = counted(block(*(t.clone() for t in inputs), **masks))
            total = torch.stack([t.square().sum() for t in outputs]).sum()
            grads = torch.autograd.grad(total, inputs)
        # without a graph other paths run: in place, in chunks, without checkpoints
        with torch.no_grad():
            again = counted(block(msa.clone(), pair.clone(), inplace_safe=True, **masks))
        return [*(t.detach() for t in outputs), *grads, *again]

    block.eval()
    stock = run()
    fast.install(block)
    fast.set_cuequivariance(block, with_cuequivariance)
    ours = run()
    fast.remove(block)
    for module, mode in zip(block.modules(), modes, strict=True):
        module.training = mode
    pairs = zip(ours, stock, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)
