"""The data sets keep the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_contract import DatasetContract
from pdb_text import pdb_chain
from tiny import build_atoms

from molfun.data.affinity import AffinityDataset
from molfun.data.atoms import AtomsDataset
from molfun.data.base import SampleDataset
from molfun.data.sequences import SequenceDataset
from molfun.data.timeseries import TimeSeriesDataset

CHAINS = ["MKV", "ACDE", "GG", "PQRSTVWY", "M", "HHHH"]


class FromFile(DatasetContract):
    """Of a table on disk."""

    column = "year"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def write(self, header: str, rows: list[str]) -> Path:
        path = self.folder / "data.csv"
        path.write_text("\n".join([header, *rows, ""]))
        return path


class TestSequences(FromFile):
    def make(self) -> SampleDataset:
        rows = [f"s{i},{c},{i / 2},{2010 + i}" for i, c in enumerate(CHAINS)]
        return SequenceDataset.from_csv(self.write("id,sequence,target,year", rows), id_column="id")


class TestStructures(FromFile):
    def make(self) -> SampleDataset:
        residues = ["ALA", "GLY", "VAL", "LYS", "SER", "TRP"]
        for name in residues:
            chain = pdb_chain(f"{name} ALA {name} GLY")
            (self.folder / f"{name}.pdb").write_text("\n".join([*chain, "END", ""]))
        rows = [f"{name},{i / 2},{2010 + i}" for i, name in enumerate(residues)]
        return AffinityDataset.from_csv(self.write("pdb_id,affinity,year", rows), self.folder)


class TestSeries(DatasetContract):
    column = "dose"

    def make(self) -> SampleDataset:
        generator = np.random.default_rng(0)
        series = [generator.normal(size=(n, 2)) for n in (3, 5, 4, 3, 6, 2)]
        return TimeSeriesDataset.from_arrays(
            series, labels=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], metadata={"dose": [1, 2, 3, 4, 5, 6]}
        )


class TestAtoms(DatasetContract):
    column = "step"

    def make(self) -> SampleDataset:
        samples = build_atoms(6)
        return AtomsDataset(
            [sample.atoms for sample in samples],
            [sample.target for sample in samples],
            metadata={"step": list(range(1, 7))},
        )
