"""Sequences with one label each, and the batches of an optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from molfun.backbones.language.alphabet import ESM
from molfun.data.sequences import SequenceDataset
from molfun.errors import ConfigError, DataError
from molfun.sample import Sample, SampleBatch
from molfun.text import listing


@dataclass(frozen=True, kw_only=True)
class SingleValueSample(Sample, Mapping[str, torch.Tensor]):
    """A `Sample` that also gives BioNeMo's tensors by name.

    ``text`` (tokens, with those for beginning and end), ``types``, ``attention_mask``, ``labels``
    (1,), ``loss_mask`` (True on residues) and ``is_random``. They are computed on access, for code
    that reads them; the model tokenises the sequence itself, packed over the batch.
    """

    NAMES: ClassVar[tuple[str, ...]] = (
        "text",
        "types",
        "attention_mask",
        "labels",
        "loss_mask",
        "is_random",
    )

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.NAMES:
            raise KeyError(name)
        if name == "labels":
            return torch.tensor([math.nan if self.target is None else float(self.target)])
        residues = ESM.encode(self.sequence or "", name=self.id).tolist()
        text = torch.tensor([*ESM.before, *residues, *ESM.after])
        # the loss counts residues, not the tokens for beginning and end
        inside = torch.ones_like(text, dtype=torch.bool)
        inside[[0, -1]] = False
        zeros, ones = torch.zeros_like(text), torch.ones_like(text)
        values = {"text": text, "attention_mask": ones, "loss_mask": inside}
        return values.get(name, zeros)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class InMemorySingleValueDataset(Dataset[SingleValueSample]):
    """Sequences with one label each, in memory.

    To read another format, turn it into (sequence, number) pairs and pass them, or do so in the
    ``__init__`` of a subclass.

    Parameters
    ----------
    data
        Pairs (sequence, number); without a label (for `infer_model`) a sequence alone, or None as
        its number.
    tokenizer
        Has to be None: ESM-2 has one alphabet, which the model brings along.
    seed
        Accepted for compatibility and ignored: nothing in these items is random.

    Raises
    ------
    DataError
        If items are not such pairs; the text lists them.

    Examples
    --------
    >>> dataset = InMemorySingleValueDataset([("MKV", 0.03), ("ACDEF", 0.05)])
    >>> len(dataset), dataset[1].sequence, dataset[1]["labels"]
    (2, 'ACDEF', tensor([0.0500]))
    >>> dataset[0]["text"].tolist()
    [0, 20, 15, 7, 2]
    """

    def __init__(
        self,
        data: Sequence[str | tuple[str, float | None]],
        tokenizer: None = None,
        seed: int | None = None,  # noqa: ARG002  (nothing is random)
    ) -> None:
        if tokenizer is not None:
            raise ConfigError(
                f"tokenizer={tokenizer!r} cannot be used: the model tokenises with the alphabet "
                f"of ESM-2. Leave tokenizer out."
            )
        items = list(data)
        problems = [f"item {i}: {item!r}" for i, item in enumerate(items) if not _is_pair(item)]
        if problems:
            raise DataError(
                f"{len(problems)} of {len(items)} items are no (sequence, number) pair:\n"
                f"{listing(problems)}"
            )
        # wrapped and not derived from: items have to be `SingleValueSample`, and nothing else
        self.dataset = SequenceDataset.from_list(items)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SingleValueSample:
        return SingleValueSample(**vars(self.dataset[index]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} sequences)"

    @property
    def ids(self) -> list[str]:
        """Names of the items: seq_1, seq_2 ..."""
        return self.dataset.ids

    @property
    def targets(self) -> Any:
        """Labels in order, NaN where there is none."""
        return self.dataset.targets

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the input preparation, saved with a checkpoint."""
        return self.dataset.input_settings

    collate_fn = staticmethod(SequenceDataset.collate_fn)


def _is_pair(item: object) -> bool:
    if isinstance(item, str):
        return True
    if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)):
        return False
    # NumPy's numbers are Real as well; True would count as the number 1
    return item[1] is None or (isinstance(item[1], Real) and not isinstance(item[1], bool))


class ESM2FineTuneDataModule:
    """Datasets of a run, and the number of sequences per step.

    An optimizer step covers `global_batch_size` sequences, `micro_batch_size` at a time. If that
    does not divide the number of sequences, the last step of a pass is filled up with sequences
    drawn a second time, so that every step has the same number. Nothing is padded: the model packs
    a batch into one token dimension.

    Parameters
    ----------
    train_dataset, valid_dataset, predict_dataset
        `InMemorySingleValueDataset`, `SequenceDataset` or another dataset of `Sample`; None where
        there is none.
    micro_batch_size
        Sequences in one forward pass.
    global_batch_size
        Sequences per optimizer step; a multiple of `micro_batch_size`.
    num_workers
        Number of processes that load data.

    Raises
    ------
    ConfigError
        If a size is below 1, or the micro batch does not divide the global one.

    Examples
    --------
    >>> dataset = InMemorySingleValueDataset([("MKV", 0.03)] * 10)
    >>> module = ESM2FineTuneDataModule(dataset, micro_batch_size=4, global_batch_size=8)
    >>> module.accumulation_steps, [len(batch) for batch in module.train_dataloader()]
    (2, [4, 4, 4, 4])
    """

    def __init__(
        self,
        train_dataset: Dataset[Any] | SequenceDataset | None = None,
        valid_dataset: Dataset[Any] | SequenceDataset | None = None,
        *,
        predict_dataset: Dataset[Any] | SequenceDataset | None = None,
        micro_batch_size: int = 4,
        global_batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        if micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size must be at least 1, got {micro_batch_size}.")
        if global_batch_size < 1 or global_batch_size % micro_batch_size:
            raise ConfigError(
                f"global_batch_size must be a multiple of micro_batch_size={micro_batch_size}, got "
                f"{global_batch_size}."
            )
        self.train_dataset = train_dataset
        self.valid_dataset = valid_dataset
        self.predict_dataset = predict_dataset
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.num_workers = num_workers

    @property
    def accumulation_steps(self) -> int:
        """Micro batches per optimizer step."""
        return self.global_batch_size // self.micro_batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        """Micro batches of `train_dataset` in whole steps, in a new order each pass."""
        dataset = self._need("train_dataset")
        steps = math.ceil(len(dataset) / self.global_batch_size)
        # draws every sequence once before any a second time, as it goes through whole permutations
        sampler = RandomSampler(dataset, num_samples=steps * self.global_batch_size)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Any] | None:
        """Micro batches of `valid_dataset`; None without one."""
        return None if self.valid_dataset is None else self._loader(self.valid_dataset)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Micro batches of `predict_dataset`, in order and complete."""
        return self._loader(self._need("predict_dataset"))

    def _need(self, name: str) -> Any:
        # asked for late: a module for prediction has no training set, and the other way round
        dataset = getattr(self, name)
        if dataset is None or len(dataset) == 0:
            missing = "no" if dataset is None else "an empty"
            raise ConfigError(f"The data module has {missing} {name}. Pass {name}=... to it.")
        return dataset

    def _loader(self, dataset: Any, sampler: RandomSampler | None = None) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.micro_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_collate,
        )


def _collate(items: Sequence[Any]) -> SampleBatch:
    # BioNeMo's own datasets give dicts of tensors, which the model cannot pack
    others = {type(item).__name__ for item in items if not isinstance(item, Sample)}
    if others:
        raise DataError(
            f"The dataset gives {', '.join(sorted(others))}; the model takes molfun.sample.Sample, "
            f"as InMemorySingleValueDataset gives. Pass (sequence, number) pairs to that."
        )
    return SampleBatch(list(items))
