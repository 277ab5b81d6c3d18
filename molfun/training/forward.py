"""The only forward pass: from samples or tensors to the representations that heads read.

A batch takes the first of four ways that applies:

* *brought*: the whole backbone is frozen, and the samples carry their representations.
* *cached*: the whole backbone is frozen; samples run one by one, and outputs are cached.
* *prefix*: the first blocks are frozen; their activations are cached, and the rest runs on these.
* *whole*: the whole backbone runs on the whole batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from molfun.backbones.base import Backbone, Features
from molfun.backbones.own_keys import input_keys
from molfun.backbones.splitting import PrefixSplitting, frozen_blocks
from molfun.backbones.tensor_input import TensorInput
from molfun.errors import ConfigError, DataError
from molfun.nn.modes import evaluating
from molfun.sample import Sample
from molfun.training.ahead import Featurize
from molfun.training.cache import PrefixCache
from molfun.training.chains import ChainMemory, chains_apart
from molfun.training.feature_cache import FeatureCache
from molfun.training.inputs import Inputs
from molfun.trunk import SAMPLE_LEVEL, ChainCheck, TrunkOutput


@dataclass(frozen=True)
class FrozenPart:
    """The leading part of a backbone that is frozen.

    Parameters
    ----------
    n_blocks
        Number of leading blocks that are frozen, with everything before them.
    whole
        Whether the whole backbone is frozen.
    splits
        Whether the forward pass can be split after these blocks.
    """

    n_blocks: int
    whole: bool
    splits: bool

    @classmethod
    def of(cls, backbone: Backbone, needs: Sequence[str]) -> Self:
        """Return the part that is frozen now; `needs` are the outputs to compute."""
        n_blocks = frozen_blocks(backbone)
        return cls(
            n_blocks=n_blocks,
            whole=not any(p.requires_grad for p in backbone.parameters()),
            splits=n_blocks > 0
            and isinstance(backbone, PrefixSplitting)
            and backbone.splits_before(n_blocks, needs),
        )


class ForwardPass:
    """Function from a batch to the representations that a reader needs.

    Parameters
    ----------
    backbone
        Backbone to run.
    needs
        Names of the representations to return, see `molfun.trunk.TrunkOutput`.
    device
        Device of the backbone.
    reader
        Name of the reader in messages: "the head MLPHead".
    make_cache
        Returns a new cache for the frozen part, or None to compute it each time. Called again
        whenever other parameters train.
    features
        Cache of features; None featurises every time.
    in_step
        Whether several processes run each pass together, so that a batch is one pass of a frozen
        backbone as well, whatever the number of its samples.
    by_chain
        For heads that read chains, their check of the number of chains: chains then run apart,
        each distinct one of a batch once, and `TrunkOutput.chains` says which belong to a sample.
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
        in_step: bool = False,
        by_chain: ChainCheck | None = None,
    ) -> None:
        self.backbone, self.needs, self.device = backbone, tuple(needs), device
        self.in_step, self.by_chain = in_step, by_chain
        self._reader = reader
        self._make_cache = make_cache
        self._featurizer = features or FeatureCache(backbone, None)
        self._reports: list[str] = []
        self._chains: ChainMemory | None = None
        self.cache: PrefixCache | None = None
        self.trainable_changed()

    def trainable_changed(self) -> None:
        """Look up what is frozen now, and start another cache: old entries end at another block."""
        self._reports = self.cache_reports()
        self.frozen = FrozenPart.of(self.backbone, self.needs)
        self.cache = None  # free the old entries before new ones need the memory
        self.cache = self._make_cache()

    def use_cache(self, make_cache: Callable[[], PrefixCache | None]) -> None:
        """Take caches from another function from now on."""
        self._make_cache = make_cache
        self.trainable_changed()

    def cache_reports(self) -> list[str]:
        """Return one sentence per cache that saved work."""
        last = "" if self.cache is None else self.cache.report()
        return [*self._reports, *([last] if last else [])]

    # --- the ways ------------------------------------------------------------------------------

    def __call__(self, inputs: Inputs) -> TrunkOutput:
        """Return the representations of a batch in the cheapest way, with a graph if weights train.

        Raises
        ------
        ConfigError
            If the backbone gives no such representation.
        DataError
            If a sample or a batch cannot be used.
        """
        return self._apart(inputs, self._cheapest if self.by_chain is None else self._run_chains)

    def _apart(self, inputs: Inputs, run: Callable[[Inputs], TrunkOutput]) -> TrunkOutput:
        """Run a batch, or the distinct chains of its samples where heads read these."""
        if self.by_chain is None:
            return run(inputs)
        refuse_brought(inputs.samples, "the chains of a sample run apart", "")
        distinct, rows = chains_apart(inputs, self.by_chain, input_keys(self.backbone))
        return replace(run(distinct), chains=rows.to(self.device))

    @contextlib.contextmanager
    def weights_stay(self) -> Iterator[None]:
        """Run each chain once within the block, in which no weight may change."""
        # with several processes in step, all of them have to run each pass
        cached = self.frozen.whole and self.cache is not None
        self._chains = None if self.in_step or cached else ChainMemory(input_keys(self.backbone))
        try:
            yield
        finally:
            self._chains = None

    def _run_chains(self, distinct: Inputs) -> TrunkOutput:
        memory = self._chains
        if memory is None or torch.is_grad_enabled():
            return self._cheapest(distinct)
        new = memory.unknown(distinct.samples)
        if new:
            memory.keep(new, self._cheapest(Inputs.of(new)))
        return memory.outputs(distinct.samples, lambda one: self._cheapest(Inputs.of([one])))

    def _cheapest(self, inputs: Inputs) -> TrunkOutput:
        if not self.frozen.whole:
            refuse_brought(inputs.samples)
            return self._from_prefix(inputs) if self.frozen.splits else self.whole(inputs)
        with torch.no_grad():
            if inputs.features is not None:
                return self.whole(inputs)
            # the fast way first: one stack for the whole batch
            vectors = brought_vectors(inputs.samples, *self._expected)
            if vectors is not None:
                return vectors
            if self.in_step:
                refuse_brought(inputs.samples)
                return self.whole(inputs)
            # one by one: no work on padding, and cached and fresh results agree bit by bit (a
            # batched matrix product may add up in another order)
            return TrunkOutput.stack([self._frozen_one(one) for one in inputs.single()])

    def whole(self, inputs: Inputs, **options: Any) -> TrunkOutput:
        """Run the whole backbone on the whole batch; `options` go to its ``forward``."""
        features = self._to_device(self._features(inputs))
        return self._checked(self.backbone(features, outputs=self.needs, **options))

    def together(self, inputs: Inputs) -> TrunkOutput:
        """Run the whole backbone on the whole batch, or on its distinct chains."""
        return self._apart(inputs, self.whole)

    @property
    def _expected(self) -> tuple[tuple[str, ...], int, torch.device]:
        return self.needs, self.backbone.single_dim, self.device

    def _frozen_one(self, one: Inputs) -> TrunkOutput:
        (sample,) = one.samples
        brought = brought_by(sample, *self._expected)
        if brought is not None:
            return brought
        if self.cache is None or sample.drawn:
            return self.whole(one)
        key = self._key(self.cache, sample)
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
        """Run the trainable blocks on the activations of the frozen ones, cached if possible."""
        with torch.no_grad():
            if self.cache is None or not inputs.samples:
                state = self._prefix(inputs)
            else:
                # one by one: not even the last bits of an entry may depend on its batch
                states = [self._prefix_one(one, self.cache) for one in inputs.single()]
                state = self._to_device(self._parts.join_states(states))
        return self._checked(
            self._parts.run_suffix(state, self.frozen.n_blocks, outputs=self.needs)
        )

    def _prefix_one(self, one: Inputs, cache: PrefixCache) -> Features:
        if one.samples[0].drawn:
            return self._prefix(one)
        key = self._key(cache, one.samples[0])
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
        """Function that featurises samples in loader workers; None if that would not save time."""
        return self._needed_features if self.backbone.featurizes_in_workers else None

    def _key(self, cache: PrefixCache, sample: Sample) -> str:
        return cache.key(input_keys(self.backbone)(sample))

    def _needed_features(self, sample: Sample) -> Features | None:
        """Return the features of a sample; None if its representations are given or cached."""
        if REPRESENTATIONS & set(sample.features or {}):
            return None
        if self.cache is not None and self.cache.holds(self._key(self.cache, sample)):
            return None
        return self._featurizer.features(sample)

    def _to_device(self, features: Features) -> Features:
        # overlaps with computation where a loader pinned the memory
        return {k: v.to(self.device, non_blocking=True) for k, v in features.items()}

    def _checked(self, output: TrunkOutput) -> TrunkOutput:
        """Return the needed outputs alone, or refuse an output without one of them."""
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
    """Return representations by the current weights, in eval mode, without graph and cache."""
    device = next(backbone.parameters()).device
    with torch.no_grad(), evaluating(backbone):
        return ForwardPass(backbone, outputs, device=device).whole(Inputs.of(samples))


# Representations that samples bring along


REPRESENTATIONS = {"single", *SAMPLE_LEVEL}
"""Names of features that replace the backbone's output."""


def refuse_brought(
    samples: Sequence[Sample],
    why: str = "parts of the backbone train",
    advice: str = "Use HeadOnlyFinetune, or",
) -> None:
    """Refuse representations if the backbone trains: they would be outdated after one step.

    Raises
    ------
    DataError
        Naming the first sample that carries any.
    """
    for sample in samples:
        if REPRESENTATIONS & set(sample.features or {}):
            raise DataError(
                f"{sample.id} comes with representations, but {why}. "
                f"{advice or 'Use'} a data set without representations."
            )


def brought_vectors(
    samples: Sequence[Sample], needs: Sequence[str], width: int, device: torch.device
) -> TrunkOutput | None:
    """Return the pooled vectors of a batch; None if a sample lacks one of `needs` or its `width`.

    `brought_by` then names what is wrong. Batches of vectors are stacked at once, since a step of
    a small head takes less time than handling its samples one by one.
    """
    if not set(needs) <= set(SAMPLE_LEVEL):
        return None
    tensors = {}
    for name in needs:
        # a missing one becomes an empty array, which fails the test of the width
        rows = [np.asarray((s.features or {}).get(name, ())) for s in samples]
        if any(row.shape != (width,) for row in rows):
            return None
        tensors[name] = torch.as_tensor(np.stack(rows), device=device).float()
    # one "residue" per sample: heads that pool take the vector as it is
    mask = torch.ones(len(samples), 1, device=device)
    return TrunkOutput.from_tensors({**tensors, "mask": mask})


def brought_by(
    sample: Sample, needs: Sequence[str], width: int, device: torch.device
) -> TrunkOutput | None:
    """Return the representations that the head reads from a sample; None if it carries none.

    Raises
    ------
    DataError
        If it carries another one than the head reads, or one of another width.
    """
    features = sample.features or {}
    names = REPRESENTATIONS & set(features)
    if not names:
        return None
    missing = sorted(set(needs) - names)
    if missing:
        raise DataError(
            f"{sample.id} comes with the representation {', '.join(sorted(names))}, but the "
            f"head reads {', '.join(missing)}. Embed with another pooling, or choose another "
            f"head or pooling."
        )
    tensors = {n: torch.as_tensor(features[n], device=device).float()[None] for n in needs}
    for name, tensor in tensors.items():
        if tensor.shape[-1] != width:
            raise DataError(
                f"{sample.id}: its representation {name!r} has {tensor.shape[-1]} channels, "
                f"the backbone {width}. Choose the backbone it came from."
            )
    length = tensors["single"].shape[1] if "single" in tensors else 1
    return TrunkOutput.from_tensors({**tensors, "mask": torch.ones(1, length, device=device)})
