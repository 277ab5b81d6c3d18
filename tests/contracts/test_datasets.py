"""The data sets keep the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pdb_text import pdb_chain
from tiny import build_atoms

from molfun.data.affinity import AffinityDataset
from molfun.data.atoms import AtomsDataset
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import Labels
from molfun.data.named_targets import NamedTargets
from molfun.data.sequences import SequenceDataset
from molfun.data.series.dataset import TimeSeriesDataset
from molfun.data.structure_dataset import StructureDataset
from molfun.testing import DataKindContract, DatasetContract

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


class TestStructuresAsLabels(FromFile):
    column = "resolution"

    def make(self) -> SampleDataset:
        for i, name in enumerate(["ALA", "GLY", "VAL", "LYS", "SER", "TRP"]):
            header = f"REMARK   2 RESOLUTION.{1.5 + i / 2:8.2f} ANGSTROMS."
            lines = [header, *pdb_chain(f"{name} ALA {name} GLY"), "END", ""]
            (self.folder / f"{name}.pdb").write_text("\n".join(lines))
        return StructureDataset.from_folder(self.folder, max_length=3)


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


class TestNamedTargets(FromFile):
    def make(self) -> SampleDataset:
        rows = [f"s{i},{c},{i / 2},{60 + i},{2010 + i}" for i, c in enumerate(CHAINS)]
        path = self.write("id,sequence,ddg,tm,year", rows)
        return NamedTargets(
            {
                name: SequenceDataset.from_csv(path, id_column="id", target_column=name)
                for name in ("ddg", "tm")
            }
        )


class TestKindOfSequences(DataKindContract):
    name = "sequences"

    def write(self, folder: Path) -> dict[str, Any]:
        rows = [f"s{i},{chain},{i / 2}" for i, chain in enumerate(CHAINS)]
        (folder / "data.csv").write_text("\n".join(["name,seq,fitness", *rows, ""]))
        return {
            "data": str(folder / "data.csv"), "sequence_column": "seq",
            "target_column": "fitness", "id_column": "name",
        }  # fmt: skip


class TestKindOfSeries(DataKindContract):
    name = "series"

    def write(self, folder: Path) -> dict[str, Any]:
        rows = [f"{s},{t},{s * t % 7}.5,{s}.0" for s in range(3) for t in range(4)]
        (folder / "data.csv").write_text("\n".join(["id,time,hr,target", *rows, ""]))
        return {"data": str(folder / "data.csv"), "feature_columns": ["hr"]}


class TestKindOfStructures(DataKindContract):
    name = "structures"

    def write(self, folder: Path) -> dict[str, Any]:
        for name in ("GLY", "VAL"):
            lines = [*pdb_chain(f"{name} ALA GLY"), "END", ""]
            (folder / f"{name}.pdb").write_text("\n".join(lines))
        (folder / "data.csv").write_text("pdb_id,affinity\nGLY,1.5\nVAL,2.5\n")
        return {"data": str(folder / "data.csv"), "pdbs": str(folder)}

    def given(self, settings: Any) -> dict[str, Any]:
        return {"pdbs": settings.pdbs}


class TestKindOfStructuresAsLabels(TestKindOfStructures):
    labels = Labels("structure")

    def write(self, folder: Path) -> dict[str, Any]:
        super().write(folder)
        return {"pdbs": str(folder), "task": "structure", "head": "structure"}


class TestKindOfAtoms(DataKindContract):
    name = "atoms"
    labels = Labels("energy")

    def write(self, folder: Path) -> dict[str, Any]:
        frame = '2\nenergy={}.5 pbc="F F F"\nH 0 0 0\nH 0 0 0.{}\n'
        (folder / "data.xyz").write_text(frame.format(1, 7) + frame.format(2, 8))
        return {"data": str(folder / "data.xyz"), "energy_key": "energy"}
