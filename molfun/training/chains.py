"""Chains of samples that run apart: the distinct ones of a batch, or of a pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from molfun.errors import DataError
from molfun.sample import Sample
from molfun.training.inputs import Inputs
from molfun.trunk import ChainCheck, TrunkOutput

MEMORY = 2**30
"""Bytes of representations that a pass over the data keeps at most; the rest runs again."""


def chains_apart(
    inputs: Inputs, check: ChainCheck, key: Callable[[Sample], str]
) -> tuple[Inputs, torch.Tensor]:
    """Return the distinct chains of a batch, and the place of each chain of its samples there.

    Chains of one `key` are the same one.

    Raises
    ------
    DataError
        If the batch holds no samples, or `check` refuses one.
    """
    if inputs.features is not None:
        raise DataError("Heads that read chains take samples; this batch is a dict of tensors.")
    distinct: dict[str, tuple[int, Sample]] = {}
    rows = []
    for sample in inputs.samples:
        apart = sample.by_chain()
        check(sample.shown, len(apart))
        of_one = [distinct.setdefault(key(c), (len(distinct), c))[0] for c in apart]
        rows.append(torch.tensor(of_one))
    chains = [chain for _, chain in distinct.values()]
    return Inputs.of(chains), nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


class ChainMemory:
    """Representations of chains in a pass during which no weight changes.

    A protein in a hundred pairs of a validation set runs once, also where its backbone trains.

    Examples
    --------
    >>> memory = ChainMemory(Sample.content_key)
    >>> pair = [Sample(id="a", sequence="MKV"), Sample(id="b", sequence="AC")]
    >>> mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    >>> memory.keep(pair, TrunkOutput(mask=mask, mean=torch.eye(2)))
    >>> memory.unknown([pair[1], Sample(id="c", sequence="GG")])[0].id
    'c'
    """

    def __init__(self, key: Callable[[Sample], str], *, budget: int = MEMORY) -> None:
        self._key = key
        self._kept: dict[str, TrunkOutput] = {}
        self._left = budget

    def unknown(self, chains: Sequence[Sample]) -> list[Sample]:
        """Return the chains that have not run."""
        return [chain for chain in chains if self._key(chain) not in self._kept]

    def keep(self, chains: Sequence[Sample], outputs: TrunkOutput) -> None:
        """Keep the outputs of chains, one row each, while there is room."""
        for row, (chain, n) in enumerate(
            zip(chains, outputs.mask.sum(1).int().tolist(), strict=True)
        ):
            tensors = {
                # copies: a view would keep the whole batch
                name: tensor[row : row + 1, :n].clone()
                if name in ("mask", "single")
                else tensor[row : row + 1].clone()
                for name, tensor in outputs.tensors().items()
            }
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            if size <= self._left:
                self._left -= size
                self._kept[self._key(chain)] = TrunkOutput.from_tensors(tensors)

    def outputs(
        self, chains: Sequence[Sample], run: Callable[[Sample], TrunkOutput]
    ) -> TrunkOutput:
        """Return the outputs of chains in one batch; `run` gives those that were not kept."""
        found = [self._kept.get(self._key(chain)) for chain in chains]
        return TrunkOutput.stack(
            [run(chain) if known is None else known
             for chain, known in zip(chains, found, strict=True)]
        )  # fmt: skip
