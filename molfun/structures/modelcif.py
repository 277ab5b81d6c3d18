"""Write a predicted structure as ModelCIF (mmCIF with the fields of computed models)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from molfun._lazy import require
from molfun.protein import ATOM_NAMES, RESIDUE_LETTERS_WITH_X
from molfun.structures.folded import FoldedStructure

INSTALL = "pip install 'molfun[openfold]'"


def mmcif_text(structure: FoldedStructure) -> str:
    """Return a structure as ModelCIF.

    The file holds the entities and chains, the software with its versions and the sha256 of the
    weights, all atoms with pLDDT as B-factor, and the confidence as ``_ma_qa_metric``: pLDDT per
    residue and as a mean, pTM and ipTM where there are any. A predicted aligned error of every pair
    of residues is in a file of its own (`molfun.structures.files.write_structure`).

    Raises
    ------
    MissingDependencyError
        If the package modelcif is not installed.

    References
    ----------
    Vallat et al. 2023, doi:10.1016/j.jmb.2023.168021; python-modelcif.
    """
    require("modelcif", INSTALL)
    import modelcif.dumper

    text = io.StringIO()
    modelcif.dumper.write(text, [_system(structure)])
    return text.getvalue()


def _system(structure: FoldedStructure) -> Any:
    import modelcif
    import modelcif.model
    import modelcif.protocol

    made_by = f" by {structure.maker.model}" if structure.maker.model else ""
    system = modelcif.System(title=f"{structure.id}{made_by}", id=_block(structure))
    system.comments.extend(structure.notes)
    asym_units = list(_asym_units(structure))
    there = _chains_with_atoms(structure)
    placed = [unit for index, unit in enumerate(asym_units) if index in there]
    assembly = modelcif.Assembly(placed, name="Predicted chains")
    software = list(_software(structure))
    system.software.extend(software)

    class Predicted(modelcif.model.AbInitioModel):
        """Atoms of the prediction."""

        def get_atoms(self) -> Iterator[Any]:
            yield from _atoms(structure, asym_units)

    model = Predicted(assembly=assembly, name=structure.id)
    model.qa_metrics.extend(_metrics(structure, asym_units, software[0]))
    system.model_groups.append(modelcif.model.ModelGroup([model], name="Prediction"))
    step = modelcif.protocol.ModelingStep(
        name="Prediction",
        details="; ".join(_how(structure)),
        input_data=modelcif.data.DataGroup(list(dict.fromkeys(u.entity for u in asym_units))),
        output_data=model,
        software=_used(structure, software),
    )
    protocol = modelcif.protocol.Protocol()
    protocol.steps.append(step)
    system.protocols.append(protocol)
    return system


def _chains_with_atoms(structure: FoldedStructure) -> set[int]:
    """Return the chains that have a place in a model: not those of unknown residues alone."""
    protein = structure.protein
    return set(protein.chain_index[(protein.atom_mask > 0).any(-1)].tolist())


def _block(structure: FoldedStructure) -> str:
    """Return the id as the name of a data block, which holds no spaces."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in structure.id) or "model"


def _asym_units(structure: FoldedStructure) -> Iterator[Any]:
    """Yield the chains; chains of one sequence are of one entity."""
    import ihm
    import modelcif

    protein = structure.protein
    alphabet = ihm.LPeptideAlphabet()
    entities: dict[str, Any] = {}
    ids = structure.residue_ids()
    for index, name in enumerate(structure.chain_names()):
        rows = np.flatnonzero(protein.chain_index == index)
        sequence = "".join(RESIDUE_LETTERS_WITH_X[i] for i in protein.aatype[rows])
        if sequence not in entities:
            residues = ["UNK" if letter == "X" else letter for letter in sequence]
            entities[sequence] = modelcif.Entity(
                [alphabet[residue] for residue in residues],
                description=f"Protein of {len(sequence)} residues",
            )
        numbers = {
            place: (ids[row][0], ids[row][1] or None) for place, row in enumerate(rows, start=1)
        }
        yield modelcif.AsymUnit(
            entities[sequence], details=f"Chain {name}", id=name, auth_seq_id_map=numbers
        )


def _atoms(structure: FoldedStructure, asym_units: list[Any]) -> Iterator[Any]:
    import modelcif.model

    protein = structure.protein
    place = _places(protein.chain_index)
    for row, atom in zip(*np.nonzero(protein.atom_mask > 0), strict=True):
        x, y, z = (float(v) for v in protein.atom_positions[row, atom])
        name = ATOM_NAMES[atom]
        yield modelcif.model.Atom(
            asym_unit=asym_units[protein.chain_index[row]],
            seq_id=int(place[row]),
            atom_id=name,
            type_symbol=name[0],
            x=x,
            y=y,
            z=z,
            biso=float(structure.plddt[row]),
            occupancy=1.0,
        )


def _places(chain_index: np.ndarray) -> np.ndarray:
    """Return the place of each residue in its chain, from 1."""
    place = np.empty(len(chain_index), np.int64)
    for chain in np.unique(chain_index):
        rows = np.flatnonzero(chain_index == chain)
        place[rows] = np.arange(1, len(rows) + 1)
    return place


def _software(structure: FoldedStructure) -> Iterator[Any]:
    import modelcif

    for name, version in structure.maker.software.items():
        yield modelcif.Software(
            name=name,
            classification="model building",
            description="Prediction of protein structures",
            location=_LOCATIONS.get(name),
            type="package",
            version=version,
        )


_LOCATIONS = {"openfold": "https://github.com/aqlaboratory/openfold"}


def _used(structure: FoldedStructure, software: list[Any]) -> Any:
    """Return the software with the parameters of this prediction."""
    import modelcif

    maker = structure.maker
    values = {
        "model": maker.model,
        "weights": maker.weights,
        "weights_sha256": maker.weights_sha256,
        "trained": maker.trained,
        "weights_in_use": maker.fingerprint,
        "recycles": structure.recycles,
        "seed": structure.seed,
        "member": structure.member,
    }
    parameters = [
        modelcif.SoftwareParameter(name, value)
        for name, value in values.items()
        if value not in ("", None)
    ]
    first = modelcif.SoftwareWithParameters(software[0], parameters)
    return modelcif.SoftwareGroup([first, *software[1:]])


def _how(structure: FoldedStructure) -> Iterator[str]:
    maker = structure.maker
    if maker.model:
        yield f"{maker.model}, weights {maker.weights}"
    if maker.weights_sha256:
        yield f"sha256 {maker.weights_sha256}"
    if maker.trained:
        yield maker.trained
    if structure.recycles is not None:
        seed = "of the sample" if structure.seed is None else structure.seed
        yield f"{structure.recycles} recycling passes, seed {seed}"
    yield from structure.notes


def _metrics(structure: FoldedStructure, asym_units: list[Any], software: Any) -> Iterator[Any]:
    """Yield the confidence of the model and of each residue."""
    import modelcif.qa_metric as qa

    class PLDDT(qa.Local, qa.PLDDT):
        """Predicted lDDT-CA of a residue, 0 to 100."""

        name = "pLDDT"
        software = None

    class MeanPLDDT(qa.Global, qa.PLDDT):
        """Mean of the predicted lDDT-CA, 0 to 100."""

        name = "pLDDT"
        software = None

    class PTM(qa.Global, qa.PTM):
        """Predicted TM-score, 0 to 1."""

        name = "pTM"
        software = None

    class IPTM(qa.Global, qa.IpTM):
        """Predicted TM-score between chains, 0 to 1."""

        name = "ipTM"
        software = None

    PLDDT.software = MeanPLDDT.software = PTM.software = IPTM.software = software
    place = _places(structure.protein.chain_index)
    yield MeanPLDDT(round(structure.mean_plddt, 3))
    there = _chains_with_atoms(structure)
    for row, value in enumerate(structure.plddt.tolist()):
        chain = int(structure.protein.chain_index[row])
        if chain not in there:
            continue
        unit = asym_units[chain]
        yield PLDDT(unit.residue(int(place[row])), round(value, 3))
    if structure.ptm is not None:
        yield PTM(round(structure.ptm, 4))
    if structure.iptm is not None:
        yield IPTM(round(structure.iptm, 4))
