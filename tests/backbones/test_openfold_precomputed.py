"""Pre-computed features: other names and layouts are understood, all else is named before a run."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun import AffinityDataset, MolfunStructureModel
from molfun.backbones.openfold import OpenFoldBackbone
from molfun.backbones.openfold.features import MODEL_INPUTS
from molfun.backbones.openfold.precomputed import PROCESSED_SHAPES, RAW_SHAPES
from molfun.errors import DataError, MolfunError
from molfun.protein import Protein
from molfun.sample import Sample

SEQUENCE = "ACDEFGHIKL"
LENGTH = len(SEQUENCE)


@pytest.fixture(scope="module")
def backbone() -> OpenFoldBackbone:
    return OpenFoldBackbone("tiny", fill_zero_init=0.1)


def raw_features(templates: int = 2) -> dict:
    """A raw feature dict as openfold writes it, of three aligned sequences."""
    from openfold.data import data_pipeline

    rng = np.random.default_rng(0)
    raw = dict(data_pipeline.make_sequence_features(SEQUENCE, "x", LENGTH))
    rows = [SEQUENCE, SEQUENCE[:-1] + "-", "-" + SEQUENCE[1:]]
    raw.update(data_pipeline.make_msa_features([rows], [[[0] * LENGTH] * 3]))
    raw.update(
        template_aatype=np.eye(22, dtype=np.float32)[rng.integers(0, 20, (templates, LENGTH))],
        template_all_atom_positions=rng.normal(size=(templates, LENGTH, 37, 3)).astype(np.float32),
        template_all_atom_mask=np.ones((templates, LENGTH, 37), np.float32),
        template_sum_probs=np.ones((templates, 1), np.float32),
    )
    return raw


def featurized(backbone, features, **settings):
    return backbone.featurize(Sample(id="x", features=features, **settings))


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def refused(backbone, features) -> str:
    sample = Sample(id="x", features=features, origin="features/x.pkl")
    with pytest.raises(DataError) as caught:
        backbone.check(sample)
    text = str(caught.value)
    assert text.startswith("x (features/x.pkl): ")
    with pytest.raises(DataError):
        backbone.featurize(sample)
    return text


# Raw features that are understood


def as_alphafold(raw: dict) -> dict:
    return {
        {"template_all_atom_mask": "template_all_atom_masks"}.get(key, key): value
        for key, value in raw.items()
    }


def by_other_types(raw: dict) -> dict:
    return {
        **raw,
        "msa": raw["msa"].astype(np.uint8),
        "deletion_matrix_int": raw["deletion_matrix_int"].astype(np.float64),
        "residue_index": raw["residue_index"].astype(">i8"),
        "aatype": raw["aatype"].astype(bool),
        "template_all_atom_positions": raw["template_all_atom_positions"].astype(">f8"),
    }


def as_tensors(raw: dict) -> dict:
    numeric = {key: value for key, value in raw.items() if value.dtype != object}
    made = {key: torch.from_numpy(value) for key, value in numeric.items()}
    return {**made, "template_all_atom_mask": made["template_all_atom_mask"].bfloat16()}


CHANGES = {
    "alphafold's names": as_alphafold,
    "deletion_matrix": lambda raw: {
        **{k: v for k, v in raw.items() if k != "deletion_matrix_int"},
        "deletion_matrix": raw["deletion_matrix_int"].astype(np.float32),
    },
    "both names": lambda raw: {**raw, "template_all_atom_masks": raw["template_all_atom_mask"]},
    "seq_length as one number": lambda raw: {**raw, "seq_length": np.array(LENGTH)},
    "last dimension of 1": lambda raw: {**raw, "residue_index": raw["residue_index"][:, None]},
    "no count of alignments": lambda raw: {k: v for k, v in raw.items() if k != "num_alignments"},
    "other types": by_other_types,
    "tensors": as_tensors,
    "further keys": lambda raw: {**raw, "msa_species_identifiers": np.array([b"", b"", b""], "O")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_names_and_types_give_the_same_features(backbone, change):
    raw = raw_features()
    seed = 3
    expected = _processed(backbone, raw, seed)
    assert_same(_processed(backbone, CHANGES[change](raw), seed), expected)


def _processed(backbone, raw, seed):
    from molfun.backbones.openfold import features
    from molfun.backbones.openfold.precomputed import check_raw

    return features.process(check_raw(raw, "x"), backbone.data_config, seed=seed)


@pytest.mark.parametrize("form", ["absent", "zero rows", "as AlphaFold writes none"])
def test_no_templates(backbone, form):
    raw = {k: v for k, v in raw_features().items() if not k.startswith("template_")}
    if form == "zero rows":
        raw = raw_features(templates=0)
    elif form == "as AlphaFold writes none":
        names = ("aatype", "all_atom_masks", "all_atom_positions", "domain_names", "sum_probs")
        raw.update({f"template_{name}": np.array([]) for name in names})
    made = featurized(backbone, raw)
    assert made["template_mask"].sum() == 0
    assert made["template_aatype"].shape == (1, LENGTH, 1)


# Raw features that are not


@pytest.mark.parametrize("key", RAW_SHAPES)
def test_a_missing_key_is_named_with_the_file(backbone, key):
    raw = raw_features()
    del raw[key]
    text = refused(backbone, raw)
    assert f"the pre-computed features lack {key}; expected openfold's raw" in text


def test_all_missing_keys_come_at_once(backbone):
    raw = raw_features()
    del raw["msa"], raw["residue_index"], raw["template_aatype"]
    text = refused(backbone, raw)
    assert "lack residue_index, msa, template_aatype;" in text
    assert text.endswith("Without any template_ key there are no templates.")


@pytest.mark.parametrize("key", sorted(RAW_SHAPES.keys() - {"seq_length", "aatype"}))
def test_a_wrong_shape_is_named(backbone, key):
    raw = raw_features()
    raw[key] = np.moveaxis(raw[key], 0, -1)[..., None, None] if raw[key].ndim == 1 else raw[key].T
    assert f"{key} has shape {raw[key].shape}; expected (" in refused(backbone, raw)


WRONG = {
    "lengths": ({"seq_length": np.full(LENGTH, 7)}, "lengths disagree: seq_length 7, aatype 10"),
    "sequence": ({"sequence": np.array([b"ACD"], object)}, "aatype 10, sequence 3. Compute"),
    "one residue short": ({"residue_index": np.arange(9)},
                          "residue_index has shape (9,); expected (length 10,)"),
    "rows": ({"deletion_matrix_int": np.zeros((2, LENGTH), int)},
             "msa has shape (3, 10)|deletion_matrix_int has shape (2, 10); expected (rows 3, leng"),
    "integer letters": ({"aatype": np.arange(LENGTH)}, "aatype has shape (10,); expected (leng"),
    "not one-hot": ({"aatype": np.zeros((LENGTH, 21))}, "aatype is not one-hot"),
    "NaN": ({"template_all_atom_positions": np.full((2, LENGTH, 37, 3), np.nan)},
            "template_all_atom_positions holds 2,220 values that are NaN or infinite"),
    "fractions": ({"msa": np.full((3, LENGTH), 0.5)}, "msa holds fractions; expected integers"),
    "NaN in integers": ({"residue_index": np.full(LENGTH, np.nan)}, "residue_index holds NaN; ex"),
    "text": ({"msa": np.full((3, LENGTH), b"A")}, "msa holds text; expected integers"),
    "objects": ({"template_all_atom_mask": np.full((2, LENGTH, 37), None)},
                "template_all_atom_mask holds text; expected numbers"),
    "range": ({"msa": np.full((3, LENGTH), 22)}, "msa holds 22 to 22; expected 0 to 21"),
    "below 0": ({"deletion_matrix_int": np.full((3, LENGTH), -1)}, "holds -1 to -1; expected 0 to"),
    "no rows": ({"msa": np.zeros((0, LENGTH), int), "deletion_matrix_int": np.zeros((0, LENGTH))},
                "msa has no rows; the first is the sequence itself"),
    "count": ({"num_alignments": np.full(LENGTH, 9)}, "num_alignments is 9, and msa has 3 rows"),
    "other numbers": ({"msa": np.zeros((3, LENGTH), int)},
                      "the first row of msa agrees with aatype in 1 of 10 residues: it is of"),
    "multimer": ({"asym_id": np.ones(LENGTH)}, "asym_id are features of AlphaFold-Multimer"),
    "two names": ({"template_all_atom_masks": np.zeros((2, LENGTH, 37))},
                  "template_all_atom_masks and template_all_atom_mask are both there and differ"),
    "two deletions": ({"deletion_matrix": np.ones((3, LENGTH))}, "both there and differ. Keep one"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(backbone, what):
    changes, expected = WRONG[what]
    text = refused(backbone, {**raw_features(), **changes})
    assert any(part in text for part in expected.split("|")), text


def test_a_mutant_keeps_the_alignment_of_its_parent(backbone):
    raw = raw_features()
    raw["aatype"] = np.eye(21, dtype=np.int32)[[17, *raw["aatype"][1:].argmax(-1)]]
    assert featurized(backbone, raw)["aatype"][0, 0] == 17


def test_all_that_is_wrong_comes_at_once(backbone):
    raw = {**raw_features(), "msa": np.full((3, LENGTH), 30), "aatype": np.ones((LENGTH, 21))}
    text = refused(backbone, raw)
    assert "2 of the pre-computed features are wrong:\n  msa holds 30" in text
    assert "\n  aatype is not one-hot" in text


# Processed features


@pytest.fixture(scope="module")
def processed(backbone) -> dict:
    made = OpenFoldBackbone("tiny", recycling=2).featurize(Sample(id="x", features=raw_features()))
    return {key: value.numpy() for key, value in made.items()}


def test_a_recycling_dimension_that_comes_first_goes_last(backbone, processed):
    first = {key: np.moveaxis(value, -1, 0) for key, value in processed.items()}
    expected = featurized(backbone, processed)
    assert expected["msa_feat"].shape == (3, LENGTH, 49, 3)
    assert_same(featurized(backbone, first), expected)
    cropped = featurized(backbone, first, max_length=4)
    assert_same(cropped, featurized(backbone, processed, max_length=4))
    backbone(backbone.collate([expected, featurized(backbone, first)]))


def test_other_types_become_those_of_the_model(backbone, processed):
    changed = {
        k: v.astype(">f8" if v.dtype.kind == "f" else np.int16) for k, v in processed.items()
    }
    assert_same(featurized(backbone, changed), featurized(backbone, processed))


def test_no_templates_and_no_extra_sequences_are_one_masked_row(backbone, processed):
    empty = {
        key: value[:0] if PROCESSED_SHAPES.get(key, ("",))[0] in ("templates", "extra") else value
        for key, value in processed.items()
    }
    made = featurized(backbone, empty)
    assert made["template_all_atom_positions"].shape == (1, LENGTH, 37, 3, 3)
    assert made["template_mask"].sum() == made["extra_msa_mask"].sum() == 0
    assert torch.isfinite(backbone(backbone.collate([made])).single).all()


def test_layouts_that_are_not_known_are_named(backbone, processed):
    text = refused(backbone, {key: value[..., 0] for key, value in processed.items()})
    assert "the features have no recycling dimension: aatype has shape (10,)" in text
    text = refused(backbone, {key: value[None] for key, value in processed.items()})
    assert "aatype has shape (1, 10, 3); expected (length, recycling)" in text
    text = refused(backbone, {**processed, "msa_feat": processed["msa_feat"][:, 1:]})
    assert "msa_feat has shape (3, 9, 49, 3); expected (rows, length 10, 49, recycling 3)" in text


def test_wrong_values_of_processed_features_are_named(backbone, processed):
    wrong = {**processed, "aatype": processed["aatype"] + 30}
    assert "aatype holds 30 to 43; expected 0 to 20" in refused(backbone, wrong)
    wrong = {**processed, "msa_feat": processed["msa_feat"] * np.nan}
    assert "values that are NaN or infinite" in refused(backbone, wrong)


# Before a run


def test_all_bad_files_are_listed_before_a_run(tmp_path):
    for name, key in (("good", ""), ("bad", "msa"), ("worse", "residue_index")):
        raw = raw_features()
        raw.pop(key, None)
        (tmp_path / f"{name}.pkl.gz").write_bytes(gzip.compress(pickle.dumps(raw)))
    (tmp_path / "data.csv").write_text("pdb_id,affinity\ngood,1\nbad,2\nworse,3\n")
    data = AffinityDataset.from_csv(tmp_path / "data.csv", features_dir=tmp_path)
    model = MolfunStructureModel("openfold", config="tiny", head="affinity")
    with pytest.raises(DataError) as caught:
        model.fit(data, epochs=1)
    text = str(caught.value)
    assert "2 samples cannot be used with OpenFold" in text
    assert f"bad ({tmp_path / 'bad.pkl.gz'}): the pre-computed features lack msa;" in text
    assert f"worse ({tmp_path / 'worse.pkl.gz'}): the pre-computed features lack residue_i" in text


def test_sequences_of_files_for_the_splits(tmp_path, processed):
    first = {key: np.moveaxis(value, -1, 0) for key, value in processed.items()}
    np.savez(tmp_path / "a.npz", **processed)
    np.savez(tmp_path / "b.npz", **first)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(raw_features()))
    (tmp_path / "data.csv").write_text("pdb_id,affinity\na,1\nb,2\nc,3\n")
    data = AffinityDataset.from_csv(tmp_path / "data.csv", features_dir=tmp_path)
    assert data.sequences() == [(SEQUENCE,)] * 3
    np.savez(tmp_path / "a.npz", sequence=np.array([]))
    with pytest.raises(DataError, match=r"a\.npz: 'sequence' holds no sequence of residues"):
        AffinityDataset.from_csv(tmp_path / "data.csv", features_dir=tmp_path).sequences()


def test_templates_of_which_one_key_is_empty_are_refused(backbone):
    raw = {**raw_features(), "template_aatype": np.zeros(0)}
    with pytest.raises(DataError, match="template_aatype"):
        backbone.check(Sample(id="x", features=raw))


def test_the_number_of_alignments_may_be_one_number(backbone):
    raw = raw_features()
    raw["num_alignments"] = len(raw["msa"])
    sample = Sample(id="x", features=raw)
    backbone.check(sample)
    assert torch.isfinite(backbone.featurize(sample)["msa_feat"]).all()


# Anything

VALUES = st.one_of(
    st.none(),
    st.integers(-3, 30),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([
        np.zeros(0), np.zeros((0, LENGTH)), np.full(LENGTH, np.nan), np.array(["x"] * LENGTH),
        np.ones((LENGTH, 21)), np.ones((3, LENGTH), bool), np.array([None, 1], object),
        np.zeros((2, LENGTH, 37, 3), complex), np.full((3, LENGTH), 2**40),
        np.zeros((LENGTH, 3)), torch.ones(LENGTH, 1), torch.zeros(2, LENGTH, 22),
        np.array(b"ACDEFGHIKL", object), np.zeros(LENGTH, "M8[s]"), np.zeros(3, [("a", int)]),
    ]),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from([*RAW_SHAPES, "sequence", "num_alignments"]), VALUES,
                       max_size=3))  # fmt: skip
def test_any_raw_features_are_taken_or_refused(backbone, changes):
    raw = {k: v for k, v in {**raw_features(), **changes}.items() if v is not None}
    try:
        backbone.check(Sample(id="x", features=raw))
    except MolfunError:
        return
    assert torch.isfinite(backbone.featurize(Sample(id="x", features=raw))["msa_feat"]).all()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(MODEL_INPUTS), VALUES, max_size=2))
def test_any_processed_features_are_taken_or_refused(backbone, processed, changes):
    features = {k: v for k, v in {**processed, **changes}.items() if v is not None}
    if "target_feat" not in features:
        return
    try:
        backbone.check(Sample(id="x", features=features))
    except MolfunError:
        return
    made = backbone.featurize(Sample(id="x", features=features))
    assert torch.isfinite(backbone(backbone.collate([made])).single).all()


def test_a_protein_without_features_is_left_alone(backbone):
    made = backbone.featurize(Sample(id="x", protein=Protein.from_sequence(SEQUENCE)))
    assert made["aatype"].shape == (LENGTH, 1)
