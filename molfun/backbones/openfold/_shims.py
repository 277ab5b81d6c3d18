"""Repairs that the openfold package (0.0.1 and 2.2.0) needs to import and to run without CUDA.

`prepare` is called once, just before openfold is first imported, and repairs only what is broken
there. Each entry names the fault it removes:

* ``attn_core_inplace_cuda``, a compiled CUDA extension that is imported at module level. It is
  never built here; a stub module takes its name.
* ``Bio.Data.SCOPData``, which Biopython 1.88 no longer has; ``Bio.Data.PDBData`` holds the same
  table.
* ``numpy.object``, removed in NumPy 1.24; needed while ``openfold.data.templates`` is imported.
* In-place attention kernels, which raise "not implemented on CPU" (aqlaboratory/openfold issues
  213, 257, 293 and 340); the pure-PyTorch form gives the same values on every device.
* The table of bonds of the violation loss, which the package of the index lacks: see
  `molfun.backbones.openfold.stereochemistry`.
* Reentrant activation checkpointing, which raises if the checkpointed weights are frozen.
* The TM-score of logits that are not finite, which raises IndexError (facebookresearch/esm issue
  364); it is NaN, so that a training step that overflows is skipped and not the end of a run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from molfun._lazy import require
from molfun.backbones.openfold.stereochemistry import add_missing_table
from molfun.errors import MissingDependencyError
from molfun.nn.process import ignore_upstream

INSTALL = "molfun install openfold (or pip install it from git)."


@functools.cache
def prepare() -> None:
    """Make ``import openfold`` work, import what the backbone uses, and replace its kernels.

    Raises
    ------
    MissingDependencyError
        If openfold or one of its own dependencies is not installed.
    """
    if importlib.util.find_spec("openfold") is None:
        raise MissingDependencyError(
            f"The openfold package is not installed. Install it: {INSTALL}"
        )
    for name in ("ml_collections", "tree"):
        require(name, "pip install ml-collections dm-tree")
    if not importlib.metadata.version("openfold").startswith(("0.", "1.")):
        require("modelcif", "pip install modelcif (openfold 2.x writes structures with it)")
    if importlib.util.find_spec("attn_core_inplace_cuda") is None:
        sys.modules["attn_core_inplace_cuda"] = types.ModuleType("attn_core_inplace_cuda")
    _add_scop_data()
    with _numpy_object(), warnings.catch_warnings():
        # openfold compiles a few functions with torch.jit.script, which torch now deprecates,
        # and its docstrings hold backslashes that Python warns of
        warnings.simplefilter("ignore")
        import openfold.data.data_pipeline
        import openfold.data.feature_pipeline
        import openfold.model.model  # noqa: F401
        from openfold.np import residue_constants

        add_missing_table()
        # read once and kept; importlib deprecates the way in which the file is opened
        residue_constants.load_stereo_chemical_props()
    # openfold indexes with lists of slices, which torch deprecates; results are right (tested).
    # The warning is attributed to our module while allocations are counted there.
    ignore_upstream("Using a non-tuple sequence", module=r"openfold|molfun\.nn\.allocation_cap")
    # its bfloat16 paths use the former names of torch's autocast functions
    ignore_upstream("`torch.cuda.amp.autocast", module="openfold")
    ignore_upstream("torch.get_autocast_gpu_dtype", DeprecationWarning)
    _replace_kernels()
    _use_nonreentrant_checkpoints()


def _add_scop_data() -> None:
    if importlib.util.find_spec("Bio.Data.SCOPData") is not None:
        return
    from Bio.Data import PDBData

    module = types.ModuleType("Bio.Data.SCOPData")
    # mypy knows no attributes of a module made here
    module.protein_letters_3to1 = PDBData.protein_letters_3to1_extended  # type: ignore[attr-defined]
    sys.modules["Bio.Data.SCOPData"] = module
    import Bio.Data

    Bio.Data.SCOPData = module


@contextlib.contextmanager
def _numpy_object() -> Iterator[None]:
    if "object" in np.__dict__:
        yield
        return
    # only while openfold is imported: the program around must see NumPy as it is
    np.object = object  # type: ignore[attr-defined]  # gone from NumPy
    try:
        yield
    finally:
        del np.object  # type: ignore[attr-defined]  # as above


def _replace_kernels() -> None:
    from openfold.model import heads, primitives, structure_module
    from openfold.utils import loss

    primitives.attention_core = attention_core
    structure_module.attn_core_inplace_cuda = types.SimpleNamespace(forward_=softmax_)
    heads.compute_tm = loss.compute_tm = tm_of_finite(loss.compute_tm)


def attention_core(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *biases: torch.Tensor | None
) -> torch.Tensor:
    """Compute attention with additive biases, as openfold's CUDA kernel does.

    Parameters
    ----------
    query, key, value
        (..., heads, length, channels); the query is already scaled.
    biases
        Tensors that broadcast to (..., heads, length, length), or None.
    """
    logits = torch.matmul(query, key.transpose(-1, -2))
    for bias in biases:
        if bias is not None:
            logits = logits + bias
    return torch.matmul(torch.softmax(logits, dim=-1), value)


def tm_of_finite(compute_tm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the function, with NaN for logits that are not finite."""

    @functools.wraps(compute_tm)
    def checked(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if not bool(torch.isfinite(logits).all()):
            return logits.new_tensor(torch.nan)
        return compute_tm(logits, *args, **options)

    return checked


def softmax_(logits: torch.Tensor, rows: int, columns: int) -> None:  # noqa: ARG001
    """Compute the softmax over the last dimension in place, in place of openfold's extension."""
    torch.softmax(logits, dim=-1, out=logits)


def _use_nonreentrant_checkpoints() -> None:
    from openfold.utils import checkpointing

    upstream = checkpointing.get_checkpoint_fn
    if upstream() is not torch.utils.checkpoint.checkpoint:
        return  # DeepSpeed's own checkpointing is configured
    fixed = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    # openfold's modules have imported the function by name, so each has its own reference
    for module in list(sys.modules.values()):
        ours = getattr(module, "__name__", "").startswith("openfold.")
        if ours and getattr(module, "get_checkpoint_fn", None) is upstream:
            module.get_checkpoint_fn = lambda: fixed  # type: ignore[attr-defined]  # checked above
