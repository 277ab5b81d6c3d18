"""Method, resolution and date of release, from the headers of PDB and mmCIF files."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import pytest
from pdb_text import pdb_chain

from molfun.data import structures
from molfun.data.experiment import Experiment, experiment_of_cif, experiment_of_pdb
from molfun.data.structures import read_structure, read_with_experiment

CHAIN = pdb_chain("ALA GLY SER LEU LYS TRP")
HEADER = [
    "HEADER    HYDROLASE                               19-MAY-97   1AKI",
    "EXPDTA    X-RAY DIFFRACTION",
    "REVDAT   2   24-FEB-09 1AKI    1       VERSN",
    "REVDAT   1   19-NOV-97 1AKI    0",
    "REMARK   2",
    "REMARK   2 RESOLUTION.    1.50 ANGSTROMS.",
]
X_RAY = Experiment(
    b_factors="measured", method="X-RAY DIFFRACTION", resolution=1.5, released="1997-11-19"
)


def test_both_readers_of_pdb_files_tell_the_same(write, monkeypatch):
    path = write("1aki.pdb", [*HEADER, *CHAIN, "END"])
    assert read_structure(path).resolution == 1.5
    assert read_with_experiment(path)[1] == X_RAY
    # a file that is not plain goes through its records
    monkeypatch.setattr(structures, "read_plain", lambda *_: None)
    assert read_structure(path).resolution == 1.5
    assert read_with_experiment(path)[1] == X_RAY


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], Experiment()),
        (["EXPDTA    SOLUTION NMR", "REMARK   2 RESOLUTION. NOT APPLICABLE."],
         Experiment(b_factors="measured", method="SOLUTION NMR")),
        (["EXPDTA    ELECTRON MICROSCOPY", "REMARK   2 RESOLUTION.    3.20 ANGSTROMS."],
         Experiment(b_factors="measured", method="ELECTRON MICROSCOPY", resolution=3.2)),
        (["REMARK   2 RESOLUTION.    0.00 ANGSTROMS."], Experiment()),
        # the date of deposition is not that of the release
        (["HEADER    HYDROLASE                               19-MAY-97   1AKI"], Experiment()),
        (["REVDAT   1   07-OCT-03 1ABC    0"], Experiment(released="2003-10-07")),
        (["REVDAT   1   99-FOO-03 1ABC    0"], Experiment()),
    ],
    ids=["none", "NMR", "EM", "zero", "deposited", "this century", "no date"],
)  # fmt: skip
def test_headers_of_pdb_files(lines, found):
    assert experiment_of_pdb("\n".join([*lines, *CHAIN, ""])) == found


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ("", Experiment()),
        ("_refine.ls_d_res_high 1.9\n_reflns.d_resolution_high 1.7", Experiment(resolution=1.9)),
        ("_refine.ls_d_res_high ?\n_reflns.d_resolution_high 1.7", Experiment(resolution=1.7)),
        ("_em_3d_reconstruction.resolution 3.4\n_exptl.method 'ELECTRON MICROSCOPY'",
         Experiment(b_factors="measured", resolution=3.4, method="ELECTRON MICROSCOPY")),
        ("_exptl.method 'SOLUTION NMR'\n_refine.ls_d_res_high .",
         Experiment(b_factors="measured", method="SOLUTION NMR")),
        ("loop_\n_exptl.method 'X-ray diffraction' 'NEUTRON DIFFRACTION'",
         Experiment(b_factors="measured", method="X-RAY DIFFRACTION; NEUTRON DIFFRACTION")),
        ("loop_\n_pdbx_audit_revision_history.revision_date 2011-07-13 2008-02-05 ?",
         Experiment(released="2008-02-05")),
        ("_database_PDB_rev.date 2008-02-05", Experiment(released="2008-02-05")),
    ],
    ids=["none", "model", "data", "map", "NMR", "two methods", "dates", "old dates"],
)  # fmt: skip
def test_items_of_mmcif_files(items, found):
    assert experiment_of_cif(gemmi.cif.read_string(f"data_x\n{items}\n")[0]) == found


def test_real_mmcif_files(real_data):
    folder = real_data / "openfold" / "mmcifs"
    found = {name: read_with_experiment(folder / f"{name}.cif") for name in ("1aki", "2q2k")}
    assert found["1aki"][1] == X_RAY
    assert found["1aki"][0].resolution == 1.5
    experiment = found["2q2k"][1]
    assert replace(experiment, unobserved=()) == Experiment(
        b_factors="measured", method="X-RAY DIFFRACTION", resolution=3.0, released="2008-02-05"
    )
    assert len(experiment.unobserved) == 51
