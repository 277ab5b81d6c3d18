"""Observables of trajectories against formulas written out in numpy."""

from __future__ import annotations

import itertools
import logging
import sys
import warnings

import numpy as np
import pytest

from molfun.data import TimeSeriesDataset, observables
from molfun.errors import ConfigError, DataError, MissingDependencyError, TableError

try:
    import MDAnalysis as md  # noqa: N813
except ImportError:
    md = None

needs_md = pytest.mark.skipif(md is None, reason="needs MDAnalysis: pip install 'molfun[md]'")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

MASSES = {"N": 14.007, "C": 12.011, "O": 15.999}
RESIDUES = ("ALA", "SER", "GLY", "VAL", "THR", "ALA", "LEU", "ALA")
SIDE = {
    "ALA": ["CB"], "SER": ["CB", "OG"], "GLY": [], "VAL": ["CB", "CG1", "CG2"],
    "THR": ["CB", "OG1", "CG2"], "LEU": ["CB", "CG", "CD1", "CD2"],
}  # fmt: skip
N_FRAMES = 12


def place(a, b, c, length: float, angle: float, dihedral: float) -> np.ndarray:
    """An atom bonded to c, by its bond, its angle to b and its dihedral to a (degrees)."""
    angle, dihedral = np.radians([angle, dihedral])
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    local = [-np.cos(angle), np.sin(angle) * np.cos(dihedral), np.sin(angle) * np.sin(dihedral)]
    return c + length * (np.array(local) @ np.array([along, np.cross(normal, along), normal]))


def peptide(phi: np.ndarray, psi: np.ndarray, chi: np.ndarray) -> tuple[list, np.ndarray]:
    """Atoms (name, residue) and positions of a chain with ideal bonds and these angles."""
    atoms, spots = [], []
    n, ca = np.zeros(3), np.array([1.46, 0, 0])
    c = place(np.array([0, 1.0, 0.3]), n, ca, 1.52, 111, phi[0])
    for i, name in enumerate(RESIDUES):
        if i:
            before = n, ca, c
            n = place(*before, 1.33, 117, psi[i - 1])
            ca = place(*before[1:], n, 1.46, 121, 180)
            c = place(before[2], n, ca, 1.52, 111, phi[i])
        oxygen = place(n, ca, c, 1.23, 120, psi[i] + 180)
        found = {"N": n, "CA": ca, "C": c, "O": oxygen}
        for k, atom in enumerate(SIDE[name]):
            if k == 0:
                found[atom] = place(c, n, ca, 1.53, 110, 122)
            elif (k < 3 and name != "LEU") or k == 1:
                found[atom] = place(n, ca, found["CB"], 1.5, 110, chi[i] + 120 * (k - 1))
            else:
                found[atom] = place(ca, found["CB"], found["CG"], 1.5, 110, 60 + 120 * k)
        atoms += [(atom, i) for atom in found]
        spots += list(found.values())
    return atoms, np.array(spots)


@pytest.fixture(scope="module")
def angles() -> dict[str, np.ndarray]:
    """(frames, residues) angles that unfold a helix, in degrees."""
    random = np.random.default_rng(0)
    shape = (N_FRAMES, len(RESIDUES))
    ramp = np.linspace(0, 1, N_FRAMES)[:, None]
    wobble = {name: 8 * random.standard_normal(shape) for name in ("phi", "psi", "chi1")}
    return {
        "phi": -60 - 70 * ramp + wobble["phi"],
        "psi": -45 + 170 * ramp + wobble["psi"],
        "chi1": -65 + 130 * ramp + wobble["chi1"],
    }


@pytest.fixture(scope="module")
def frames(angles) -> tuple[list, np.ndarray]:
    """Atoms, and (frames, atoms, 3) positions that also turn and drift."""
    random = np.random.default_rng(1)
    atoms, moved = [], []
    for phi, psi, chi in zip(angles["phi"], angles["psi"], angles["chi1"], strict=True):
        atoms, positions = peptide(phi, psi, chi)
        turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
        turn[0] *= np.linalg.det(turn)
        moved.append(positions @ turn.T + 5 * random.standard_normal(3))
    return atoms, np.array(moved)


def universe(atoms: list, positions: np.ndarray, box=None, chains=None):
    """A Universe in memory."""
    n_residues = len(RESIDUES)
    chains = chains or ["A"] * n_residues
    made = md.Universe.empty(
        len(atoms), n_residues=n_residues, atom_resindex=[i for _, i in atoms],
        n_segments=len(set(chains)), trajectory=True,
        residue_segindex=[sorted(set(chains)).index(chain) for chain in chains],
    )  # fmt: skip
    made.add_TopologyAttr("names", [name for name, _ in atoms])
    made.add_TopologyAttr("elements", [name[0] for name, _ in atoms])
    made.add_TopologyAttr("types", [name[0] for name, _ in atoms])
    made.add_TopologyAttr("masses", [MASSES[name[0]] for name, _ in atoms])
    made.add_TopologyAttr("resnames", list(RESIDUES))
    made.add_TopologyAttr("resids", range(11, 11 + n_residues))
    made.add_TopologyAttr("segids", sorted(set(chains)))
    made.add_TopologyAttr("chainIDs", [chains[i] for _, i in atoms])
    dimensions = None if box is None else np.tile([*box, 90, 90, 90], (len(positions), 1))
    made.load_new(positions.astype(np.float32), dimensions=dimensions, dt=2.5)
    return made


@pytest.fixture(scope="module")
def paths(tmp_path_factory, frames):
    """A PDB of the first frame, and the trajectory as XTC, DCD and PDB."""
    folder = tmp_path_factory.mktemp("md")
    made = universe(*frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.atoms.write(folder / "top.pdb")
        for suffix, options in (("xtc", {}), ("dcd", {"dt": 2.5}), ("pdb", {})):
            path = str(folder / f"run.{suffix}")
            with md.Writer(path, len(made.atoms), **options) as writer:
                for _ in made.trajectory:
                    writer.write(made.atoms)
    return folder


def column(found, name: str) -> np.ndarray:
    return found.values[:, found.names.index(name)]


def index_of(atoms: list, name: str, residue: int) -> int:
    return atoms.index((name, residue))


def superposed_rmsd(one: np.ndarray, other: np.ndarray) -> float:
    """After the rotation of Kabsch."""
    one, other = one - one.mean(0), other - other.mean(0)
    u, s, vt = np.linalg.svd(one.T @ other)
    s[-1] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))
    square = (one**2).sum() + (other**2).sum() - 2 * s.sum()
    return float(np.sqrt(max(square, 0) / len(one)))


# Against numpy


@needs_md
def test_angles_are_those_the_peptide_was_built_with(frames, angles):
    found = observables(universe(*frames), observe=["phi", "psi", "chi1"])
    assert found.values.dtype == np.float32
    for name, known in (
        ("phi", range(1, 8)), ("psi", range(7)), ("chi1", [1, 3, 4, 6]),
    ):  # fmt: skip
        for i in range(len(RESIDUES)):
            places = [found.names.index(f"{name}_{11 + i}_{form}") for form in ("sin", "cos")]
            assert (found.mask[:, places] == (i in known)).all()
            if i in known:
                built = np.radians(angles[name][:, i])
                expected = np.stack([np.sin(built), np.cos(built)], axis=1)
                np.testing.assert_allclose(found.values[:, places], expected, atol=2e-4)
            else:
                assert not found.values[:, places].any()


@needs_md
def test_sizes_and_superposition(frames):
    atoms, positions = frames
    found = observables(universe(*frames), observe=["rg", "end_to_end", "rmsd"])
    weights = np.array([MASSES[name[0]] for name, _ in atoms])
    weights /= weights.sum()
    for row, spots in enumerate(positions):
        centred = spots - weights @ spots
        rg = np.sqrt(weights @ (centred**2).sum(1))
        assert column(found, "rg")[row] == pytest.approx(rg, rel=1e-4)
        ends = spots[index_of(atoms, "CA", 7)] - spots[index_of(atoms, "CA", 0)]
        assert column(found, "end_to_end")[row] == pytest.approx(np.linalg.norm(ends), rel=1e-4)
        chain = [i for i, (name, _) in enumerate(atoms) if name in ("N", "CA", "C", "O")]
        rmsd = superposed_rmsd(spots[chain], positions[0][chain])
        assert column(found, "rmsd")[row] == pytest.approx(rmsd, rel=1e-3, abs=1e-3)
    assert column(found, "rmsd")[-1] > 2


@needs_md
def test_native_contacts(frames):
    atoms, positions = frames
    found = column(observables(universe(*frames), observe=["native_contacts"]), "native_contacts")
    pairs = [
        (i, j)
        for (i, (_, p)), (j, (_, q)) in itertools.combinations(enumerate(atoms), 2)
        if abs(p - q) > 3 and np.linalg.norm(positions[0][i] - positions[0][j]) < 4.5
    ]
    assert len(pairs) > 3
    left, right = np.array(pairs).T
    native = np.linalg.norm(positions[0][left] - positions[0][right], axis=1)
    for value, spots in zip(found, positions, strict=True):
        now = np.linalg.norm(spots[left] - spots[right], axis=1)
        assert value == pytest.approx(np.mean(1 / (1 + np.exp(5 * (now - 1.8 * native)))), abs=1e-4)
    assert found[0] > 0.95 > 0.5 > found[-1]


@needs_md
def test_distances_of_selections(frames):
    atoms, positions = frames
    select = {"start": "resid 11 12", "end": "resid 18", "oxygens": "name O"}
    found = observables(universe(*frames), select=select, observe=())
    assert found.names == ["distance_start_end", "distance_start_oxygens", "distance_end_oxygens"]
    chosen = {
        "start": [i for i, (_, residue) in enumerate(atoms) if residue < 2],
        "end": [i for i, (_, residue) in enumerate(atoms) if residue == 7],
        "oxygens": [i for i, (name, _) in enumerate(atoms) if name == "O"],
    }
    for name, (a, b) in zip(found.names, itertools.combinations(chosen, 2), strict=True):
        centres = positions[:, chosen[a]].mean(1) - positions[:, chosen[b]].mean(1)
        np.testing.assert_allclose(column(found, name), np.linalg.norm(centres, axis=1), rtol=1e-4)


@needs_md
def test_distances_are_those_of_the_nearest_images(frames):
    box = np.array([9.0, 11.0, 10.0])
    select = {"start": "resid 11 and name CA", "end": "resid 18 and name CA"}
    found = observables(universe(*frames, box=box), select=select, observe=())
    atoms, positions = frames
    apart = positions[:, index_of(atoms, "CA", 7)] - positions[:, index_of(atoms, "CA", 0)]
    nearest = apart - box * np.round(apart / box)
    assert (np.linalg.norm(nearest, axis=1) < np.linalg.norm(apart, axis=1) - 1).any()
    np.testing.assert_allclose(found.values[:, 0], np.linalg.norm(nearest, axis=1), rtol=1e-4)


# Files, frames, chains


@needs_md
@pytest.mark.parametrize(("suffix", "tolerance"), [("xtc", 0.02), ("dcd", 2e-3), ("pdb", 2e-3)])
def test_files_and_memory_agree(paths, frames, suffix, tolerance):
    made = universe(*frames)
    found = observables(paths / "top.pdb", paths / f"run.{suffix}")
    expected = observables(made)
    assert found.names == expected.names
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.values, expected.values, atol=tolerance)
    np.testing.assert_allclose(expected.times, 2.5 * np.arange(N_FRAMES))
    if suffix != "pdb":  # which has no times
        np.testing.assert_allclose(found.times, expected.times, atol=1e-5)


@needs_md
def test_a_topology_with_frames_of_its_own(paths):
    found = observables(paths / "run.pdb", observe=["rg"])
    assert found.values.shape == (N_FRAMES, 1)


@needs_md
def test_start_stop_and_stride(frames):
    whole = observables(universe(*frames), observe=["rg", "rmsd"])
    part = observables(universe(*frames), observe=["rg", "rmsd"], start=2, stop=9, stride=3)
    assert part.times.tolist() == whole.times[2:9:3].tolist()
    np.testing.assert_array_equal(column(part, "rg"), column(whole, "rg")[2:9:3])
    # the first frame that is read is the reference
    assert column(part, "rmsd")[0] == pytest.approx(0, abs=1e-3)
    assert column(whole, "rmsd")[2] > 0.1


@needs_md
def test_several_chains(frames):
    made = universe(*frames, chains=list("AAAABBBB"))
    found = observables(made, observe=["phi", "end_to_end"])
    assert found.names[:2] == ["phi_A11_sin", "phi_A11_cos"]
    assert found.names[-2:] == ["end_to_end_A", "end_to_end_B"]
    atoms, positions = frames
    ends = positions[:, index_of(atoms, "CA", 7)] - positions[:, index_of(atoms, "CA", 4)]
    np.testing.assert_allclose(
        column(found, "end_to_end_B"), np.linalg.norm(ends, axis=1), rtol=1e-4
    )


@needs_md
def test_a_gap_in_the_chain_has_no_angle(frames):
    found = observables(
        universe(*frames), observe=["phi", "psi"], protein="protein and not resid 14"
    )
    known = dict(zip(found.names, found.mask[0], strict=True))
    assert not known["psi_13_sin"]
    assert not known["phi_15_sin"]
    assert known["phi_16_sin"]
    assert "phi_14_sin" not in known


@needs_md
def test_no_native_contact_is_masked(frames, caplog):
    found = observables(universe(*frames), observe=["native_contacts"], protein="resid 11 12")
    assert not found.mask.any()
    assert "has no native contact in its first frame; masked" in caplog.text


# Errors


@needs_md
@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"observe": ["rgg"]}, ConfigError, "Did you mean 'rg'?"),
        ({"observe": "rg"}, ConfigError, "observe must be a list of names, got 'rg'"),
        ({"observe": []}, ConfigError, "There is nothing to compute"),
        ({"select": {"a": "all"}}, ConfigError, "select must name at least two selections"),
        ({"stride": 0, "start": -1}, ConfigError, "start must be a whole number of at least 0"),
        ({"stop": 0}, ConfigError, "stop must be a whole number of at least 1"),
        ({"start": 50}, DataError, "has 12 frames, none of them in start=50"),
        ({"protein": "nucleic"}, DataError, "the selection protein='nucleic' matches no atom"),
        ({"protein": "resname (ALA"}, ConfigError, "no selection"),
        ({"select": {"a": "all", "b": "resid 99"}}, DataError, "b='resid 99' matches no atom"),
        ({"protein": "name CB"}, DataError, "end_to_end needs two atoms CA of one chain"),
        ({"observe": ["chi1"], "protein": "name CA"}, DataError, "chi1 needs residues"),
        ({"observe": ["rmsd"], "protein": "name CB"}, DataError, "rmsd needs at least three"),
    ],
)
def test_what_is_refused(frames, options, error, reason):
    with pytest.raises(error) as caught:
        observables(universe(*frames), **options)
    assert reason in str(caught.value)


@needs_md
def test_masses_that_are_not_known(frames):
    made = universe(*frames)
    made.atoms[3].mass = 0
    with pytest.raises(DataError, match="rg needs the masses of all atoms"):
        observables(made, observe=["rg"])


@needs_md
def test_coordinates_that_are_not_finite(frames):
    atoms, positions = frames
    damaged = positions.copy()
    damaged[5, 7] = np.nan
    with pytest.raises(DataError, match=r"frame 5: rg is nan\. Its coordinates are damaged"):
        observables(universe(atoms, damaged))


@needs_md
@pytest.mark.parametrize("keep", [0, 10, 0.5, -3])
def test_damaged_files(paths, tmp_path, keep):
    whole = (paths / "run.xtc").read_bytes()
    end = int(len(whole) * keep) if keep == 0.5 else keep
    (tmp_path / "run.xtc").write_bytes(whole[:end])
    try:
        found = observables(paths / "top.pdb", tmp_path / "run.xtc", observe=["rg"])
    except DataError as error:
        text = str(error)
    else:
        # a file that was cut between two frames is a shorter trajectory
        assert 0 < len(found.times) < N_FRAMES
        return
    assert f"{tmp_path / 'run.xtc'} " in text
    assert "cannot be read" in text or "its last frame is not whole" in text


@needs_md
def test_files_that_do_not_fit(paths, tmp_path):
    lines = (paths / "top.pdb").read_text().splitlines()
    (tmp_path / "small.pdb").write_text("\n".join([*lines[:-4], "END"]))
    with pytest.raises(DataError, match="cannot be read"):
        observables(tmp_path / "small.pdb", paths / "run.xtc")
    with pytest.raises(DataError, match=r"No such file: .*none\.xtc"):
        observables(paths / "top.pdb", paths / "none.xtc")


def test_without_mdanalysis(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "MDAnalysis", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'molfun\[md\]'"):
        observables(tmp_path / "a.pdb")


# Data sets


@needs_md
def test_a_table_of_trajectories(paths, caplog):
    rows = ["id,topology,trajectory,target,group,salt", "a,top.pdb,run.xtc,0.5,wt,10"]
    rows += ["b,top.pdb,run.dcd,,wt,20", "c,run.pdb,,1.5,mutant,30"]
    table = paths / "runs.csv"
    table.write_text("\n".join(rows) + "\n")
    data = TimeSeriesDataset.from_trajectories(table, stride=2, observe=["rg", "phi"])
    assert data.ids == ["a", "b", "c"]
    assert data.groups == ["wt", "wt", "mutant"]
    assert data.lengths.tolist() == [N_FRAMES // 2] * 3
    assert data[1].target is None
    assert data[2].target == 1.5
    assert data[0].origin == "runs.csv, line 2"
    assert data[0].metadata["salt"] == 10
    assert data[0].metadata["frame_ps"] == pytest.approx(5)
    expected = observables(paths / "top.pdb", paths / "run.xtc", stride=2, observe=["rg", "phi"])
    np.testing.assert_array_equal(data[0].features["timeseries"], expected.values)
    np.testing.assert_array_equal(data[0].features["mask"], expected.mask)
    assert data.input_settings["observables"] == {"stride": 2, "observe": ["rg", "phi"]}
    assert "Frames are 2 ps apart in c and 5 ps in a" in caplog.text
    train, val, test = data.windows(3).split(0.4, 0)
    assert (set(train.groups), set(val.groups), len(test)) == ({"wt"}, {"mutant"}, 0)


@needs_md
def test_systems_with_other_features(frames, caplog):
    whole = universe(*frames)
    atoms, positions = frames
    kept = [i for i, (name, _) in enumerate(atoms) if not name.startswith("OG")]
    part = universe([atoms[i] for i in kept], positions[:, kept])
    select = {"start": "resid 11", "end": "resid 18"}
    caplog.set_level(logging.WARNING)
    data = TimeSeriesDataset.from_trajectories(
        [("a", whole, None, "x"), ("b", part, None, "y", "g")], select=select, observe=["chi1"]
    )
    assert not caplog.messages
    assert data.targets.tolist() == ["x", "y"]
    assert data.groups == ["a", "g"]
    place = data.feature_names.index("chi1_12_sin")
    assert data[0].features["mask"][:, place].all()
    assert not data[1].features["mask"][:, place].any()
    two = universe(atoms, positions, chains=list("AAAABBBB"))
    both = TimeSeriesDataset.from_trajectories([("a", whole), ("b", two)], observe=["end_to_end"])
    assert both.feature_names == ["end_to_end", "end_to_end_A", "end_to_end_B"]
    assert both[1].features["mask"][0].tolist() == [False, True, True]
    assert "3 of 3 features are not in all trajectories" in caplog.text


@needs_md
def test_all_missing_files_come_in_one_error(paths):
    table = paths / "bad.csv"
    table.write_text("id,topology,trajectory\na,top.pdb,no.xtc\nb,none.pdb,\nc,top.pdb,run.xtc\n")
    with pytest.raises(TableError) as caught:
        TimeSeriesDataset.from_trajectories(table)
    assert "2 files not found:" in str(caught.value)
    assert f"a: {paths / 'no.xtc'}" in str(caught.value)
    assert f"b: {paths / 'none.pdb'}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,topologie\na,x.pdb\n", "Did you mean 'topologie' for 'topology'?"),
        ("id,topology,target\na,x.pdb,high\n", "line 2, column target: 'high' is not a number"),
        ("id,topology\n,x.pdb\nb,\n", "line 3, column topology: is blank; name a file"),
    ],
)
def test_bad_tables(write, text, reason):
    with pytest.raises(TableError) as caught:
        TimeSeriesDataset.from_trajectories(write("runs.csv", text))
    assert reason in str(caught.value)


def test_bad_rows_and_options():
    with pytest.raises(ConfigError, match=r"Item 1 must be \(id, topology, trajectory"):
        TimeSeriesDataset.from_trajectories([("a",)])
    with pytest.raises(ConfigError, match="Did you mean 'stride'"):
        TimeSeriesDataset.from_trajectories([("a", "b.pdb")], strid=2)
