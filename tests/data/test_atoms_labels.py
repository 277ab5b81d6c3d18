"""Labels of structures: their forms, and what looks like one and is not used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molfun.data.atoms import AtomsDataset
from molfun.data.atoms_labels import LabelShape
from molfun.errors import ConfigError, DataError

pytest.importorskip("ase")

Write = Callable[..., Path]
CUBE = 'Lattice="2 0 0 0 2 0 0 0 4"'


def frame(
    keys: str = "energy=-7", columns: str = "", n: int = 2, values: Sequence[Any] = ()
) -> str:
    """A frame of `n` oxygens, 1.2 angstrom apart."""
    rows = "\n".join(f"O {1.2 * i} 0 0 {' '.join(map(str, values))}" for i in range(n))
    return f"{n}\nProperties=species:S:1:pos:R:3{columns} {keys}\n{rows}\n"


@pytest.fixture
def read(write: Write, caplog: pytest.LogCaptureFixture) -> Callable[..., AtomsDataset]:
    """Read frames as the file x.xyz; warnings are in caplog."""

    def read_frames(*frames: str, **keys: Any) -> AtomsDataset:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return AtomsDataset.from_files(write("x.xyz", "".join(frames)), **keys)

    return read_frames


Read = Callable[..., AtomsDataset]


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", ["1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3"], ids=["Voigt", "matrix"])
@pytest.mark.parametrize("name", ["stress", "REF_stress"])
def test_a_stress_has_six_numbers_or_nine(read: Read, name: str, numbers: str) -> None:
    data = read(frame(f'energy=1 {name}="{numbers}" {CUBE}'), stress_key=name)
    expected = [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    np.testing.assert_array_equal(data[0].target["stress"], expected)


@pytest.mark.parametrize("numbers", ["16 0 0 0 8 0", "16 0 0 0 0 0 0 0 0", "16 0 0 0 0 0"])
@pytest.mark.parametrize("name", ["virial", "dft_virials"])
def test_a_virial_is_read_as_stress_of_the_other_sign(read: Read, name: str, numbers: str) -> None:
    data = read(frame(f'energy=1 {name}="{numbers}" {CUBE}'), virial_key=name)
    stress = data[0].target["stress"]
    assert stress[0, 0] == pytest.approx(-1.0)  # 16 eV in 16 angstrom^3, pressed together
    assert stress[0, 2] == pytest.approx(-0.5 if "8" in numbers else 0.0)
    assert data.input_settings == {"kind": "atoms", "virial_key": name}


def test_stress_and_virial_of_one_calculation_agree(read: Read) -> None:
    """Under tension ASE's stress is positive, and the virial negative."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    atoms = bulk("Cu", a=3.8, cubic=True)  # 3.61 at rest
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False)
    assert stress[0, 0] > 0
    atoms.info["virial"] = -stress * atoms.get_volume()
    labels = [
        AtomsDataset.from_atoms([atoms], **keys)[0].target["stress"]
        for keys in ({}, {"virial_key": "virial"})
    ]
    np.testing.assert_allclose(labels[0], labels[1], atol=1e-12)


def test_labels_by_name_take_the_same_forms() -> None:
    from ase.build import bulk

    atoms = bulk("Cu", cubic=True)
    volume = atoms.get_volume()
    labels = [{"virial": np.eye(3) * volume}, {"stress": [1.0, 2, 3, 0, 0, 0], "energy": 3}]
    data = AtomsDataset([atoms, atoms], labels)
    np.testing.assert_allclose(data.targets[0]["stress"], -np.eye(3))
    np.testing.assert_allclose(data.targets[1]["stress"], np.diag([1.0, 2, 3]))
    with pytest.raises(DataError, match=r"structure_1: 'forces' are no forces, which are"):
        AtomsDataset([atoms], [{"forces": np.zeros((3, 3))}])


@pytest.mark.parametrize("cell", ["", f'{CUBE} pbc="T T F"', 'pbc="F F F"'])
def test_without_a_volume_a_stress_is_not_used_and_said(
    read: Read, caplog: pytest.LogCaptureFixture, cell: str
) -> None:
    data = read(
        frame(f'energy=1 virial="16 0 0 0 0 0" {CUBE}'),
        frame(f'energy=1 virial="16 0 0 0 0 0" {cell}'),
        virial_key="virial",
    )
    assert np.isnan(data[1].target["stress"]).all()
    assert "1 of 2 structures have a stress or virial, which is not used" in caplog.text


@pytest.mark.parametrize(
    ("keys", "columns", "text"),
    [
        ('stress="1 2 3"', "", "stress has 3 values; it takes 6 or 9 numbers."),
        ('s="1 2 3"', "", "structure 1: 's' has 3 numbers; it takes 6 or 9."),
        ('s="1 9 0 0 1 0 0 0 1"', "", "structure 1: 's' is not symmetric"),
        ('energy="-3 eV"', "", "structure 1: 'energy' is '-3 eV', and a label is made of numb"),
        ('energy="1 2"', "", "structure 1: 'energy' is no energy, which is one number"),
        (
            "energy=1e999",
            "",
            "structure 1: 'energy' is infinite. Write NaN where there is no",
        ),
        ("energy=1", ":forces:R:2", "structure 1: 'forces' are no forces, which are (atoms, 3)"),
    ],
)
def test_a_label_that_cannot_be_one_is_named(
    read: Read, keys: str, columns: str, text: str
) -> None:
    options = {"stress_key": "s"} if "s=" in keys and "stress" not in keys else {}
    with pytest.raises(DataError) as caught:
        read(frame(f"{keys} {CUBE}", columns, values=(1, 2) if columns else ()), **options)
    assert text in str(caught.value)
    assert "x.xyz" in str(caught.value)


def test_all_wrong_labels_are_listed(read: Read) -> None:
    with pytest.raises(DataError, match=r"2 structures with labels that cannot be used:\n.* 1: .*"):
        read(frame("energy=x"), frame(), frame("energy=y"))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"stress_key": "virial"},
            "stress_key='virial' (--stress-key) names a virial: an energy (eV), of the other sign. "
            "Give virial_key='virial' (--virial-key virial), which is read as stress = -virial / "
            "volume",
        ),
        ({"stress_key": "REF_virials"}, "--virial-key REF_virials"),
        ({"virial_key": "stress"}, "names a stress. Give stress_key='stress'"),
        ({"virial_key": "virial", "stress_key": "stress"}, "so give one of them"),
        ({"forces_key": "gradient"}, "forces are minus the gradient"),
        ({"energy_key": "energy_per_atom"}, "Multiply it by the number of atoms"),
    ],
)
def test_a_name_that_says_something_else_is_refused(
    read: Read, keys: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(frame(), **keys)
    assert text in str(caught.value)


# --- what is not used ----------------------------------------------------------------------------

FORCES = ("force", "F", "REF_forces", "dft_forces", "DFT_force", "MACE_forces", "mace_F")
TENSORS = ("virials", "REF_virial", "dft_stress", "MACE_stress", "Stress")
ENERGIES = ("free_energy", "Energy", "total_energy", "e0", "REF_energy", "dft_energy", "E",
            "energy_D3", "energy_without_dispersion")  # fmt: skip


@pytest.mark.parametrize("name", FORCES)
def test_forces_of_another_name_are_said(
    read: Read, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    frames = [frame(columns=f":{name}:R:3", values=(0.1, 0, 0))] * 3
    read(*frames, frame())
    (text,) = caplog.messages
    assert text.endswith(
        f"x.xyz: {name!r} (3 numbers per atom) in 3 of 4 structures is not used. Use it with "
        f"forces_key={name!r} (--forces-key {name})."
    )
    assert len(read(*frames, forces_key=name)[0].target["forces"]) == 2
    assert not caplog.messages


@pytest.mark.parametrize("n", [6, 9])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_another_name_are_said(
    read: Read, caplog: pytest.LogCaptureFixture, name: str, n: int
) -> None:
    numbers = "1 0 0 0 1 0 0 0 1" if n == 9 else "1 1 1 0 0 0"
    read(frame(f'energy=1 {name}="{numbers}" {CUBE}'))
    kind = "virial" if "virial" in name else "stress"
    (text,) = caplog.messages
    assert f"{name!r} ({n} numbers per structure) in 1 of 1 structures is not used" in text
    assert f"Use it with {kind}_key={name!r} (--{kind}-key {name})." in text
    assert "stress" in read(frame(f'{name}="{numbers}" {CUBE}'), **{f"{kind}_key": name})[0].target


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_of_another_name_are_said(
    read: Read, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    read(frame(f"energy=-7 {name}=-7.1"))
    (text,) = caplog.messages
    assert f"{name!r} (one number per structure) in 1 of 1 structures is not used" in text
    assert f"(the energy read is 'energy'). Use it with energy_key={name!r}" in text
    # of all structures, none has the usual name
    read(frame(f"{name}=-7.1"))
    assert f"is not used. Use it with energy_key={name!r} (--energy-key {name})." in caplog.text


def test_one_line_for_each_kind(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    columns, values = ":F:R:3:force:R:3", (1, 0, 0, 2, 0, 0)
    read(
        frame(f'energy=1 e0=2 free_energy=3 virial="1 0 0 0 1 0 0 0 1" {CUBE}', columns, 2, values),
        frame(f"energy=1 e0=2 {CUBE}", ":F:R:3", 2, values[:3]),
    )
    energy, forces, virial = caplog.messages
    assert "'e0' (one number per structure) in 2 of 2 structures, 'free_energy'" in energy
    assert "in 1 of 2 structures are not used" in energy
    assert "'F' (3 numbers per atom) in 2 of 2 structures, 'force'" in forces
    assert "'virial' (9 numbers per structure)" in virial


def test_advice_where_no_argument_reads_a_column(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    read(frame("energy=-7 energy_per_atom=-3.5"))
    assert "multiply it by the number of atoms" in caplog.text
    read(frame(columns=":gradient:R:3", values=(1, 0, 0)))
    assert "Forces are minus the gradient" in caplog.text


@pytest.mark.parametrize(
    ("keys", "columns", "values"),
    [
        ("energy=-7 free_energy=-7", "", ()),
        (f'energy=1 stress="1 1 1 0 0 0" virial="-16 0 0 0 -16 0 0 0 -16" {CUBE}', "", ()),
        ("energy=1", ":forces:R:3:gradient:R:3", (1, 2, 3, -1, -2, -3)),
        ('energy=1 cut_off_energy="650 eV" energy_tol=1e-8 energy_weight=1 force_mask=T', "", ()),
        ("energy=1 e=T fmax=0.1 dipole_force=x", ":charges:R:1:frac_pos:R:3", (1, 2, 3, 4)),
        ("energy=1 stress_tensor=1", ":force:R:1", (1,)),
    ],
    ids=["same energy", "same stress", "same forces", "settings", "other", "other shapes"],
)
def test_no_word_where_nothing_is_lost(
    read: Read, caplog: pytest.LogCaptureFixture, keys: str, columns: str, values: Any
) -> None:
    read(frame(keys, columns, values=values))
    assert not caplog.messages


def test_a_key_without_a_name_is_no_label(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    read(frame('energy=-7 "', ":force:R:3", values=(1, 0, 0)))
    assert "'force' (3 numbers per atom) in 1 of 1 structures is not used" in caplog.text


def test_structures_without_labels_are_quiet(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    data = read(frame("config=a"), frame(""))
    assert data.targets == [{}, {}]
    assert not caplog.messages


def test_what_is_left_out_on_purpose_is_not_told_of(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    frames = frame(f'energy=1 virial="1 1 1 0 0 0" {CUBE}', ":force:R:3:forces:R:3", 2, range(6))
    data = read(frames, leave_out=["forces", "stress"])
    assert set(data[0].target) == {"energy"}
    assert not caplog.messages


def test_equal_structures_with_other_energies_are_said(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    read(frame("energy=-7"), frame("energy=-7"), frame("energy=-7", n=3))
    assert not caplog.messages
    read(frame("energy=-7"), frame("energy=nan"), frame("energy=-7.5"))
    (text,) = caplog.messages
    assert "x.xyz: 1 structure with another energy than an equal structure before (" in text
    assert "x.xyz, structure 1: -7; " in text
    assert "x.xyz, structure 3: -7.5)" in text


def test_several_files_and_structures_in_memory(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write(name, frame("energy=1 dft_energy=2")) for name in ("a.xyz", "b.xyz")]
    with caplog.at_level(logging.WARNING):
        data = AtomsDataset.from_files(paths)
        assert "a.xyz and 1 other file: 'dft_energy' (one number per" in caplog.messages[0]
        assert "in 2 of 2 structures" in caplog.messages[0]
        for again in (AtomsDataset.from_atoms, AtomsDataset):
            caplog.clear()
            again(data.atoms)
            assert caplog.messages[0].startswith("Structures: 'dft_energy' (one number per")
            assert (
                "Use it with AtomsDataset.from_atoms(..., energy_key='dft_energy')."
                in (caplog.messages[0])
            )


def test_names_of_all_structures_are_listed(read: Read) -> None:
    frames = [frame("")] * 7
    with pytest.raises(DataError, match=r"No structure of .*x.xyz has 'enrgy'. They have: late"):
        read(*frames, frame("late=1"), energy_key="enrgy")


def test_names_that_need_not_be_there(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    data = read(frame("energy=1"), energy_key="dft_energy", optional=["energy"])
    assert data.targets == [{}]
    assert "'energy' (one number per structure) in 1 of 1 structures is not used" in caplog.text


# --- labels of other kinds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "key", "shape"),
    [
        ([frame("gap=1.5")], "gap", LabelShape((), per_atom=False)),
        ([frame('dipole="0 0 1"', n=3)], "dipole", LabelShape((3,), per_atom=False)),
        ([frame(f'q="{"1 " * 9}"')], "q", LabelShape((9,), per_atom=False)),
        ([frame("alpha=_JSON")], "alpha", None),
        ([frame("kind=metal"), frame("kind=salt")], "kind", None),
        ([frame("", ":charges:R:1", 3, (1,))], "charges", LabelShape((), per_atom=True)),
        ([frame("", ":shift:R:3", 3, (1, 2, 3))], "shift", LabelShape((3,), per_atom=True)),
        ([frame(f'born="{"1 " * n}"', n=n) for n in (2, 3)], "born", LabelShape((), per_atom=True)),
    ],
)  # fmt: skip
def test_the_shape_of_a_label(
    read: Read, frames: list[str], key: str, shape: LabelShape | None
) -> None:
    data = read(*frames, target_key=key)
    assert data.label_shape == shape
    assert data.subset([0]).label_shape == shape


def test_labels_of_different_shapes_are_named(read: Read) -> None:
    with pytest.raises(DataError) as caught:
        read(frame("dipole=1"), frame('dipole="0 0 1"'), target_key="dipole")
    assert "1 structure whose label 'dipole' has another shape than that of " in str(caught.value)
    assert "x.xyz, structure 2: 'dipole' has the shape (3,) for 2 atoms" in str(caught.value)
