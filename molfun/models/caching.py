"""Caches of a run: features of its samples, and outputs of the frozen part of the backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from molfun import __version__
from molfun._paths import as_path
from molfun.backbones.base import Backbone
from molfun.backbones.splitting import prefix_fingerprint
from molfun.models.assembly import AssembledModel, arithmetic_of, attention_of
from molfun.nn import lora
from molfun.runs.folder import CACHE, RunFolder
from molfun.training.cache import CacheConfig, CacheMode, PrefixCache, make_cache
from molfun.training.feature_cache import FeatureCache
from molfun.training.forward import FrozenPart
from molfun.training.task_head import TaskHead, joined_needs

logger = logging.getLogger(__name__)


def cache_config(
    cache: CacheMode | CacheConfig, folder: str | Path | None, run: RunFolder | None
) -> CacheConfig:
    """Return the cache settings with a folder: the given one, or one inside the run's folder."""
    config = cache if isinstance(cache, CacheConfig) else CacheConfig(mode=cache)
    if folder is None:
        folder = config.directory
    if folder is None and run is not None:
        folder = run.path / CACHE
    return replace(config, directory=None if folder is None else as_path(folder))


def caches_of(model: AssembledModel, heads: Sequence[TaskHead], config: CacheConfig) -> RunCaches:
    """Return the caches of a model that computes in its present precision."""
    about = f"{model.precision} {arithmetic_of(model)} {attention_of(model)}"
    return RunCaches(model.backbone, joined_needs(heads), config, arithmetic=about)


class RunCaches:
    """Builder of the caches of a run.

    Parameters
    ----------
    backbone
        Backbone of the run; which parts of it are frozen is looked up at each call, since gradual
        unfreezing changes it.
    needs
        Outputs of the backbone that the heads read.
    config
        Where entries are kept.
    arithmetic
        Precision, device and kernels; part of every key, so that entries that were computed
        otherwise are not used.
    """

    def __init__(
        self, backbone: Backbone, needs: Sequence[str], config: CacheConfig, *, arithmetic: str
    ) -> None:
        self._backbone, self._needs, self._config = backbone, tuple(needs), config
        self._arithmetic = arithmetic

    def reserved_bytes(self) -> int:
        """Return the memory that entries may take up, 0 if this run caches nothing."""
        return self._config.memory_bytes if self._keeps(self._frozen()) else 0

    def has_outputs(self) -> bool:
        """Return whether anything is frozen that a cache could keep."""
        return self._keeps(self._frozen())

    def features(self) -> FeatureCache:
        """Return the cache of featurised samples; it uses the same folder as the other entries."""
        # features go to disk only: the budget of memory is for outputs of the frozen part
        on_disk = self._config.mode in ("auto", "disk")
        folder = self._config.directory if on_disk else None
        return FeatureCache(self._backbone, None if folder is None else Path(folder) / "features")

    def outputs(self) -> PrefixCache | None:
        """Return the cache of the frozen part; None if this run caches nothing.

        Entries are the outputs of a backbone that is frozen as a whole, or the activations before
        its first block that trains.
        """
        backbone, frozen = self._backbone, self._frozen()
        if not self._keeps(frozen):
            if self._config.mode in ("memory", "disk"):
                logger.warning(
                    "cache=%r keeps nothing in this run: %s.", self._config.mode, _why_not(frozen)
                )
            return None
        spec = lora.installed_spec(backbone)
        if not frozen.whole and spec is not None and min(spec.blocks or (0,)) >= frozen.n_blocks:
            spec = None  # all adapters come after the cached activations and cannot change them
        if frozen.whole:
            weights, kept = backbone.state_fingerprint(), self._needs
        else:
            weights = prefix_fingerprint(backbone, frozen.n_blocks)
            # where the structure is read, more is kept for the structure module
            more = tuple(name for name in self._needs if name == "structure")
            kept = (f"before block {frozen.n_blocks}", *more)
        # another version of torch may add up in another order, another Molfun featurise differently
        versions = f"torch {torch.__version__} molfun {__version__}"
        about = f"{self._arithmetic} {versions}"
        return make_cache(
            self._config, (weights, backbone.featurize_key(), about, repr(spec), *kept)
        )

    def _frozen(self) -> FrozenPart:
        return FrozenPart.of(self._backbone, self._needs)

    def _keeps(self, frozen: FrozenPart) -> bool:
        return self._config.mode != "off" and (frozen.whole or frozen.splits)


def _why_not(frozen: FrozenPart) -> str:
    if frozen.n_blocks == 0:
        return "parts of the backbone train, so its outputs change at every step"
    return (
        "what the head reads, or recycling, passes through what trains, or the number of passes is "
        "drawn"
    )
