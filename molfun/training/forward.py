"""The one forward pass: from samples or tensors to what a head reads.

A batch goes one of four ways, the first that applies:

* *brought*: nothing of the backbone trains, and samples bring their representations along.
* *cached*: nothing of it trains; samples run one by one, and outputs are kept.
* *prefix*: its first blocks are frozen; what they give is kept, and the rest runs on it.
* *whole*: all runs, on all samples together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from molfun.backbones.base import Backbone, Features
from molfun.backbones.splitting import PrefixSplitting, frozen_blocks
from molfun.backbones.tensor_input import TensorInput
from molfun.errors import ConfigError
from molfun.nn.modes import evaluating
from molfun.sample import Sample
from molfun.training.ahead import Featurize
from molfun.training.brought import (
    REPRESENTATIONS,
    brought_by,
    brought_vectors,
    refuse_brought,
)
from molfun.training.cache import PrefixCache
from molfun.training.feature_cache import FeatureCache
from molfun.training.inputs import Inputs
from molfun.trunk import TrunkOutput


@dataclass(frozen=True)
class FrozenPart:
    """How much of a backbone does not train, from its beginning on.

    Parameters
    ----------
    n_blocks
        Leading blocks that are frozen along with all in front of them.
    whole
        Whether nothing of it trains.
    splits
        Whether the forward pass can be divided behind these blocks, though something trains.
    """

    n_blocks: int
    whole: bool
    splits: bool

    @classmethod
    def of(cls, backbone: Backbone, needs: Sequence[str]) -> Self:
        """Return what is frozen now; `needs` are the outputs that are asked for."""
        n_blocks = frozen_blocks(backbone)
        return cls(
            n_blocks=n_blocks,
            whole=not any(p.requires_grad for p in backbone.parameters()),
            splits=n_blocks > 0
            and isinstance(backbone, PrefixSplitting)
            and backbone.splits_before(n_blocks, needs),
        )


class ForwardPass:
    """A backbone as a function from a batch to the representations that are asked for.

    Parameters
    ----------
    backbone
        What runs.
    needs
        Representations that are given, see `molfun.trunk.TrunkOutput`.
    device
        Where the backbone is.
    reader
        What reads the output, for messages: "the head MLPHead".
    make_cache
        Makes the cache of what the frozen part gives: outputs, or activations at the first block
        that trains. None computes them each time.
    features
        Featurises samples; None asks the backbone every time.
    """

    def __init__(
        self,
        backbone: Backbone,
        needs: Sequence[str],
        *,
        device: torch.device,
        reader: str = "the caller",
        make_cache: Callable[[], PrefixCache | None] = lambda: None,
        features: FeatureCache | None = None,
    ) -> None:
        self.backbone, self.needs, self.device = backbone, tuple(needs), device
        self._reader = reader
        self._make_cache = make_cache
        self._featurizer = features or FeatureCache(backbone, None)
        self._reports: list[str] = []
        self.cache: PrefixCache | None = None
        self.trainable_changed()

    def trainable_changed(self) -> None:
        """Find out what is frozen now; the cache so far holds something else and goes."""
        self._reports = self.cache_reports()
        self.frozen = FrozenPart.of(self.backbone, self.needs)
        self.cache = None  # frees the entries before there are others
        self.cache = self._make_cache()

    def cache_reports(self) -> list[str]:
        """Return what each cache saved, where it was of use."""
        last = "" if self.cache is None else self.cache.report()
        return [*self._reports, *([last] if last else [])]

    # --- the ways ------------------------------------------------------------------------------

    def __call__(self, inputs: Inputs) -> TrunkOutput:
        """Representations of a batch the cheapest way, with a graph where something trains.

        Raises
        ------
        ConfigError
            If the backbone does not give what is asked for.
        DataError
            If a sample or a batch cannot be used.
        """
        if not self.frozen.whole:
            refuse_brought(inputs.samples)
            return self._from_prefix(inputs) if self.frozen.splits else self.whole(inputs)
        with torch.no_grad():
            if inputs.features is not None:
                return self.whole(inputs)
            vectors = brought_vectors(inputs.samples, *self._expected)
            if vectors is not None:
                return vectors
            # one by one: no work on padding, and cached and fresh results are the same bits
            return TrunkOutput.stack([self._frozen_one(one) for one in inputs.single()])

    def whole(self, inputs: Inputs, **options: Any) -> TrunkOutput:
        """Run all of the backbone on all samples together; `options` go to its ``forward``."""
        features = self._to_device(self._features(inputs))
        return self._checked(self.backbone(features, outputs=self.needs, **options))

    @property
    def _expected(self) -> tuple[tuple[str, ...], int, torch.device]:
        return self.needs, self.backbone.single_dim, self.device

    def _frozen_one(self, one: Inputs) -> TrunkOutput:
        (sample,) = one.samples
        brought = brought_by(sample, *self._expected)
        if brought is not None:
            return brought
        if self.cache is None:
            return self.whole(one)
        key = self.cache.key(sample.content_key())
        stored = self.cache.get(key)
        if stored is None:
            start = time.perf_counter()
            stored = self.cache.put(key, self.whole(one).tensors(), since=start)
        return TrunkOutput.from_tensors(self._to_device(stored))

    @property
    def _parts(self) -> PrefixSplitting:
        assert isinstance(self.backbone, PrefixSplitting)  # else `frozen.splits` is false
        return self.backbone

    def _from_prefix(self, inputs: Inputs) -> TrunkOutput:
        """Run the part that trains on what the frozen blocks give, computed now or before."""
        with torch.no_grad():
            if self.cache is None or not inputs.samples:
                state = self._prefix(inputs)
            else:
                # one by one, so that a resumed run computes the same bits in any order of samples
                states = [self._prefix_one(one, self.cache) for one in inputs.single()]
                state = self._to_device(self._parts.join_states(states))
        return self._checked(
            self._parts.run_suffix(state, self.frozen.n_blocks, outputs=self.needs)
        )

    def _prefix_one(self, one: Inputs, cache: PrefixCache) -> Features:
        key = cache.key(one.samples[0].content_key())
        state = cache.get(key)
        if state is None:
            start = time.perf_counter()
            state = cache.put(key, self._prefix(one), since=start)
        return state

    def _prefix(self, inputs: Inputs) -> Features:
        features = self._to_device(self._features(inputs))
        return self._parts.run_prefix(features, self.frozen.n_blocks)

    # --- in and out ----------------------------------------------------------------------------

    def _features(self, inputs: Inputs) -> Features:
        if inputs.features is not None:
            if isinstance(self.backbone, TensorInput):
                self.backbone.check_batch(inputs.features)
            return inputs.features
        return self.backbone.collate(inputs.featurized(self._featurizer.features))

    @property
    def ahead(self) -> Featurize | None:
        """Featurises samples in workers of a loader; None where that is not worth it."""
        return self._needed_features if self.backbone.featurizes_in_workers else None

    def _needed_features(self, sample: Sample) -> Features | None:
        """Features of a sample, unless its representations are there already."""
        if REPRESENTATIONS & set(sample.features or {}):
            return None
        if self.cache is not None and self.cache.holds(self.cache.key(sample.content_key())):
            return None
        return self._featurizer.features(sample)

    def _to_device(self, features: Features) -> Features:
        return {k: v.to(self.device, non_blocking=True) for k, v in features.items()}

    def _checked(self, output: TrunkOutput) -> TrunkOutput:
        """Only what is needed, and all of it."""
        found = output.select(self.needs)
        missing = [name for name in self.needs if name not in found.given]
        if missing:
            backbone = self.backbone
            raise ConfigError(
                f"{backbone.display_name} gives no {missing[0]!r}, which {self._reader} reads. "
                f"Choose another head, pooling or output, or let "
                f"{type(backbone).__name__}.forward give it (it gave "
                f"{', '.join(output.given) or 'nothing'})."
            )
        return found


def run_now(backbone: Backbone, samples: Sequence[Sample], outputs: Sequence[str]) -> TrunkOutput:
    """Representations by the weights of now, in eval mode and without a graph; nothing is kept."""
    device = next(backbone.parameters()).device
    with torch.no_grad(), evaluating(backbone):
        return ForwardPass(backbone, outputs, device=device).whole(Inputs.of(samples))
