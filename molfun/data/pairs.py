"""Read pairs and sets of chains with one label each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from molfun.data.sequences import SequenceDataset
from molfun.errors import DataError
from molfun.sample import CHAIN_SEPARATOR
from molfun.text import counted, listing


class SequencePairDataset(SequenceDataset):
    """Samples of two chains or more: partners that bind, heavy and light chains, complexes.

    It is a `SequenceDataset` whose sequences have ``:`` between chains, for heads that read chains
    (``pair_mlp``, ``cross_attention``). Splits treat a sample as the set of its chains, and
    `molfun.data.PairSplitter` keeps partners apart.
    """

    @classmethod
    def from_csv(
        cls,
        csv: str | Path,
        *,
        sequence_columns: str | Sequence[str] = ("sequence_a", "sequence_b"),
        target_column: str | Sequence[str] = "target",
        **columns: Any,
    ) -> SequencePairDataset:
        r"""Read a table with the chains of a sample, and its label, in each row.

        Parameters
        ----------
        csv
            The table; columns that are not named here are kept as metadata.
        sequence_columns
            Columns of the chains, one each; or one column of ``A:B``.
        target_column, **columns
            As in `SequenceDataset.from_csv`.

        Raises
        ------
        TableError
            If a column is missing or any row is bad; all of them are listed.
        DataError
            If a row has one chain alone; all are listed.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pairs.csv"
        >>> _ = path.write_text("heavy,light,kd\nMKV,ACD,8.1\nMKV,GGS,7.5\n")
        >>> data = SequencePairDataset.from_csv(
        ...     path, sequence_columns=["heavy", "light"], target_column="kd"
        ... )
        >>> data[1].chains, data.targets.tolist()
        (('MKV', 'GGS'), [8.1, 7.5])
        """
        dataset = super().from_csv(
            csv, sequence_column=sequence_columns, target_column=target_column, **columns
        )
        assert isinstance(dataset, cls)  # made by `cls`
        return dataset._of_several()

    @classmethod
    def from_list(cls, items: Iterable[Any], **options: Any) -> SequencePairDataset:
        """Make a data set of (chains, label) pairs.

        Parameters
        ----------
        items
            Each ``((chain, chain, ...), label)``, or without a label a list of chains; a text
            ``"A:B"`` stands for the chains as well.
        **options
            As in `SequenceDataset.from_list`.

        Raises
        ------
        DataError
            If a sample has one chain alone; all are listed.

        Examples
        --------
        >>> data = SequencePairDataset.from_list([(("MKV", "ACD"), 8.1), ("MKV:GGS", 7.5)])
        >>> data.sequences(), data.lengths.tolist()
        ([('MKV', 'ACD'), ('MKV', 'GGS')], [6, 6])
        """
        joined: list[str | tuple[str, Any]] = [_joined(item) for item in items]
        dataset = super().from_list(joined, **options)
        assert isinstance(dataset, cls)  # made by `cls`
        return dataset._of_several()

    def _of_several(self) -> SequencePairDataset:
        chains = self.sequences()
        blank = [self[i].shown for i, of_one in enumerate(chains) if not all(of_one)]
        if blank:
            raise DataError(
                f"{counted(len(blank), 'sample')} with an empty chain:\n{listing(blank)}"
            )
        alone = [self[i].shown for i, of_one in enumerate(chains) if len(of_one) < 2]
        if alone:
            raise DataError(
                f"{counted(len(alone), 'sample')} of one chain alone:\n{listing(alone)}\nWrite two "
                f"chains as A:B, or read single sequences with SequenceDataset."
            )
        return self

    def __repr__(self) -> str:
        return f"SequencePairDataset({len(self)} samples from {self._table.path})"


def _joined(item: Any) -> str | tuple[str, Any]:
    """Return an item with its chains as one text."""
    if isinstance(item, str):
        return item
    if isinstance(item, list):
        return _text(item)
    if not isinstance(item, tuple) or len(item) != 2:
        raise DataError(f"A sample is (chains, label), or the chains alone; got {item!r}.")
    chains, label = item
    return (chains if isinstance(chains, str) else _text(chains)), label


def _text(chains: Any) -> str:
    """Return chains as one text."""
    several = list(chains) if isinstance(chains, list | tuple) else [chains]
    if not all(isinstance(chain, str) and CHAIN_SEPARATOR not in chain for chain in several):
        raise DataError(f"Chains are a list of sequences, one each; got {chains!r}.")
    return CHAIN_SEPARATOR.join(several)
