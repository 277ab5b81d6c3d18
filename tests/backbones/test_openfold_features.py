"""Every feature is the one openfold's own pipeline gives, on real structures."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from molfun.backbones.openfold import OpenFoldBackbone
from molfun.backbones.openfold.features import MODEL_INPUTS
from molfun.data import read_features, read_structure
from molfun.errors import DataError
from molfun.protein import CHAIN_GAP, Protein
from molfun.sample import Sample

DATA = Path(os.environ.get("MOLFUN_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real_file(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}; set MOLFUN_DATA to the folder of the development data")
    return path


@pytest.fixture(scope="module")
def backbone() -> OpenFoldBackbone:
    return OpenFoldBackbone("tiny", fill_zero_init=0.1)


@pytest.fixture
def one_chain(tmp_path) -> Path:
    """Chain A of a real complex as a PDB file of its own."""
    lines = real_file("ppi_affinity", "pdbs", "1acb.pdb").read_text().splitlines()
    first = next(line[21] for line in lines if line.startswith("ATOM"))
    kept = [line for line in lines if line.startswith("ATOM") and line[21] == first]
    path = tmp_path / "1acb.pdb"
    path.write_text("\n".join([*kept, "TER", "END", ""]))
    return path


def openfold_features(raw: dict, *, depth: int = 1, templates: int = 1, recycling: int = 0):
    """What openfold's own pipeline makes of a raw feature dict, at the sizes of the sample."""
    from openfold.config import model_config
    from openfold.data.feature_pipeline import FeaturePipeline

    data = copy.deepcopy(model_config("model_1_ptm").data)
    with data.unlocked():
        data.common.max_recycling_iters = recycling
        data.predict.masked_msa_replace_fraction = 0.0
        data.predict.max_msa_clusters = depth
        data.predict.max_extra_msa = 1
        data.predict.max_templates = templates
    return FeaturePipeline(data).process_features(raw, mode="predict")


def assert_same(ours: dict, theirs: dict, *, apart: tuple[str, ...] = ()) -> None:
    assert ours.keys() == theirs.keys()
    for key in theirs.keys() - set(apart):
        assert ours[key].dtype == theirs[key].dtype, key
        assert torch.equal(ours[key], theirs[key]), key


# The whole pipeline, against openfold's


def test_a_pdb_file_gives_openfolds_features(backbone, one_chain, tmp_path):
    from openfold.data.data_pipeline import DataPipeline

    protein = read_structure(one_chain)
    ours = backbone.featurize(Sample(id="1acb", protein=protein))
    (tmp_path / "no_alignments").mkdir()
    raw = DataPipeline(template_featurizer=None).process_pdb(
        str(one_chain), str(tmp_path / "no_alignments"), is_distillation=False
    )
    theirs = openfold_features(raw)
    # openfold counts residues through; ours shows the gaps of the crop to the trunk
    assert_same(ours, theirs, apart=("residue_index",))
    assert theirs["residue_index"][:, 0].tolist() == list(range(len(protein)))
    assert ours["residue_index"][:, 0].tolist() == protein.residue_index.tolist()
    assert np.any(np.diff(protein.residue_index) > 1)


@pytest.mark.parametrize("name", ["1aki", "4i6p"])
def test_an_mmcif_file_gives_openfolds_features(backbone, tmp_path, name):
    from openfold.data import mmcif_parsing
    from openfold.data.data_pipeline import DataPipeline

    path = real_file("openfold", "mmcifs", f"{name}.cif")
    parsed = mmcif_parsing.parse(file_id=name, mmcif_string=path.read_text()).mmcif_object
    (tmp_path / "no_alignments").mkdir()
    raw = DataPipeline(template_featurizer=None).process_mmcif(
        parsed, str(tmp_path / "no_alignments"), chain_id="A"
    )
    theirs = openfold_features(raw)
    protein = read_structure(path, chains="A")
    ours = backbone.featurize(Sample(id=name, protein=protein))
    # openfold takes the deposited sequence, ours the residues that have coordinates
    seen = np.asarray(raw["all_atom_mask"]).any(axis=-1)
    assert len(protein) == seen.sum()
    for key in MODEL_INPUTS:
        dims = backbone._schema._dims[key]
        expected = theirs[key]
        for dim, kind in enumerate(dims):
            if kind == "NUM_RES":
                expected = expected.index_select(dim, torch.from_numpy(np.flatnonzero(seen)))
        if key == "residue_index":
            expected = expected - expected[0]
        assert torch.equal(ours[key], expected), key


def test_atoms_of_an_mmcif_file_are_openfolds(tmp_path):
    from openfold.data import mmcif_parsing

    path = real_file("openfold", "mmcifs", "1aki.cif")
    parsed = mmcif_parsing.parse(file_id="1aki", mmcif_string=path.read_text()).mmcif_object
    positions, mask = mmcif_parsing.get_atom_coords(parsed, "A")
    protein = read_structure(path, chains="A")
    assert protein.sequence == parsed.chain_to_seqres["A"]
    assert np.array_equal(protein.atom_mask, mask)
    assert np.allclose(protein.atom_positions, positions, atol=1e-3)


def test_target_feat_leaves_the_first_channel_to_segment_breaks(backbone):
    protein = Protein.from_sequence("ARNDCQEGHILKMFPSTWYVX")
    target = backbone.featurize(Sample(id="a", protein=protein))["target_feat"][..., 0]
    assert target.shape == (21, 22)
    assert target.argmax(-1).tolist() == list(range(1, 22))
    assert torch.equal(target.sum(-1), torch.ones(21))


def test_chains_are_far_apart_in_residue_index(backbone):
    path = real_file("ppi_affinity", "pdbs", "1acb.pdb")
    protein = read_structure(path)
    index = backbone.featurize(Sample(id="1acb", protein=protein))["residue_index"][:, 0]
    borders = np.flatnonzero(np.diff(protein.chain_index))
    assert len(borders) == 1
    steps = torch.diff(index)
    assert (steps > 0).all()
    assert (steps[borders] >= CHAIN_GAP).all()


# Alignments

QUERY = "ACDEFGHIKLMN"
A3M = f">query\n{QUERY}\n>one\nACDEFGHIKLM-\n>two\n-CDEFghGHIKLMN\n>three\nWCDEFGHIKLMY\n"


def aligned(folder: Path, sequence: str = QUERY, text: str = A3M, **settings) -> Sample:
    folder.mkdir(exist_ok=True)
    (folder / "hits.a3m").write_text(text)
    protein = Protein.from_sequence(sequence, name="1abc")
    return Sample(id="1abc", protein=protein, alignment_dir=folder, **settings)


def test_alignments_give_openfolds_features(backbone, tmp_path):
    from openfold.data.data_pipeline import DataPipeline

    sample = aligned(tmp_path / "alignments")
    (tmp_path / "query.fasta").write_text(f">1abc\n{QUERY}\n")
    raw = DataPipeline(template_featurizer=None).process_fasta(
        str(tmp_path / "query.fasta"), str(tmp_path / "alignments")
    )
    ours = backbone.featurize(sample)
    assert_same(ours, openfold_features(raw, depth=4))
    assert ours["msa_feat"].shape == (4, 12, 49, 1)
    # "gh" of the second homologue is inserted before its G
    assert ours["msa_feat"][:, 5, 23, 0].sum() == 1


def test_a_crop_keeps_the_columns_of_its_residues(backbone, tmp_path):
    whole = aligned(tmp_path / "alignments")
    cropped = aligned(tmp_path / "alignments")
    protein = cropped.protein.crop(4)
    assert protein.sequence == "FGHI"
    part = backbone.featurize(Sample(id="1abc", protein=protein, alignment_dir=whole.alignment_dir))
    full = backbone.featurize(whole)
    assert torch.equal(part["true_msa"], full["true_msa"][:, 4:8])
    assert torch.equal(part["msa_feat"][..., 23:25, :], full["msa_feat"][:, 4:8, 23:25])


def test_the_deposited_sequence_is_mapped_to_the_observed_residues(backbone, tmp_path):
    observed = "CDEFIKLM"  # no first residue, none of "GH", no last one
    sample = aligned(tmp_path / "alignments", sequence=observed)
    msa = backbone.featurize(sample)["true_msa"][..., 0]
    full = backbone.featurize(aligned(tmp_path / "alignments"))["true_msa"][..., 0]
    columns = [1, 2, 3, 4, 7, 8, 9, 10]
    assert torch.equal(msa, full[:, columns])


def test_unknown_residues_match_any_column(backbone, tmp_path):
    sample = aligned(tmp_path / "alignments", sequence=QUERY[:5] + "X" + QUERY[6:])
    assert backbone.featurize(sample)["msa_feat"].shape[:2] == (4, 12)


@pytest.mark.parametrize("sequence", ["WWWWWWWWWWWW", QUERY + "AAAA", "MNACDEF"])
def test_alignments_of_another_protein_are_refused(backbone, tmp_path, sequence):
    with pytest.raises(
        DataError, match=r"1abc: the query of the alignments in .*alignments has 12"
    ):
        backbone.featurize(aligned(tmp_path / "alignments", sequence=sequence))


def test_alignments_that_cannot_be_read_are_named(backbone, tmp_path):
    sample = aligned(tmp_path / "alignments", text=f">query\n{QUERY}\n>one\nACDEF\n")
    with pytest.raises(
        DataError, match=r"1abc: .*hits\.a3m, line 3 \(one\): 5 columns where .* 12\."
    ):
        backbone.featurize(sample)


def test_the_order_of_files_on_the_disk_changes_nothing(backbone, tmp_path, monkeypatch):
    sample = aligned(tmp_path / "alignments")
    (tmp_path / "alignments" / "other.a3m").write_text(f">query\n{QUERY}\n>x\nACDEFGHIKLYY\n")
    (tmp_path / "alignments" / "hhsearch").mkdir()
    first = backbone.featurize(sample)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(iterdir(path), reverse=True))
    second = backbone.featurize(sample)
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(iterdir(path)))
    assert first["msa_feat"].shape[0] == 5
    assert_same(first, second)
    assert_same(first, backbone.featurize(sample))


def test_an_empty_folder_of_alignments_is_no_alignment(backbone, tmp_path):
    (tmp_path / "empty").mkdir()
    protein = Protein.from_sequence(QUERY)
    with_folder = Sample(id="1abc", protein=protein, alignment_dir=tmp_path / "empty")
    bare = backbone.featurize(Sample(id="1abc", protein=protein))
    assert_same(backbone.featurize(with_folder), bare)


def test_real_alignments_run_through(tmp_path):
    path = real_file("openfold", "alignments_6KWC", "bfd_uniref_hits.a3m")
    protein = read_structure(path.with_name("6KWC_1_model_1_ptm_unrelaxed.pdb"))
    folder = tmp_path / "alignments"
    folder.mkdir()
    (folder / path.name).write_text(path.read_text())
    backbone = OpenFoldBackbone("tiny", max_msa_clusters=8, max_extra_msa=16)
    sample = Sample(id="6kwc", protein=protein.crop(20), alignment_dir=folder)
    features = backbone.featurize(sample)
    assert features["msa_feat"].shape == (8, 20, 49, 1)
    assert features["extra_msa"].shape == (16, 20, 1)
    assert_same(features, backbone.featurize(sample))


# Pre-computed features


@pytest.fixture(scope="module")
def raw() -> dict:
    return dict(read_features(real_file("openfold", "features.pkl")))


@pytest.fixture(scope="module")
def shallow() -> OpenFoldBackbone:
    return OpenFoldBackbone("tiny", fill_zero_init=0.1, max_msa_clusters=6, max_extra_msa=4)


def test_raw_features_are_openfolds_own(shallow, raw):
    from openfold.data.feature_pipeline import FeaturePipeline

    sample = Sample(id="known", features=raw)
    ours = shallow.featurize(sample)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sample.content_key()[:8], 16))
        theirs = FeaturePipeline(shallow.data_config).process_features(dict(raw), mode="predict")
    assert_same(ours, theirs)
    assert ours["msa_feat"].shape == (6, 59, 49, 1)
    assert ours["template_aatype"].shape == (4, 59, 1)


def test_raw_features_give_an_output(shallow, raw):
    features = shallow.featurize(Sample(id="known", features=raw, max_length=16))
    output = shallow(shallow.collate([features]), outputs=("single", "pair"))
    assert output.single.shape == (1, 16, 32)
    assert torch.isfinite(output.pair).all()


def test_raw_features_are_cropped_in_the_middle(shallow, raw):
    from molfun.backbones.openfold.features import crop_raw

    cropped = crop_raw(raw, 20)
    start = (59 - 20) // 2
    assert cropped["seq_length"].tolist() == [20] * 20
    assert np.array_equal(cropped["msa"], raw["msa"][:, start : start + 20])
    assert np.array_equal(cropped["residue_index"], raw["residue_index"][start : start + 20])
    assert cropped["template_all_atom_positions"].shape[1] == 20
    features = shallow.featurize(Sample(id="known", features=raw, max_length=20))
    assert features["residue_index"][:, 0].tolist() == list(range(start, start + 20))
    assert features["template_all_atom_positions"].shape == (4, 20, 37, 3, 1)
    assert crop_raw(raw, 59).keys() == raw.keys()


def test_raw_features_that_lack_something_are_refused(backbone):
    with pytest.raises(DataError, match=r"known: the pre-computed features lack aatype, .*; exp"):
        backbone.featurize(Sample(id="known", features={"msa": np.zeros((1, 3))}))


def test_processed_features_are_taken_as_they_are(backbone, samples):
    made = backbone.featurize(samples(1)[0])
    as_arrays = {key: value.numpy() for key, value in made.items()}
    for form in (made, as_arrays):
        taken = backbone.featurize(Sample(id="ready", features=form))
        assert taken.keys() == set(MODEL_INPUTS)
        assert all(torch.equal(taken[key], made[key]) for key in taken)


def test_processed_features_are_cropped(backbone, samples):
    made = backbone.featurize(samples(1, lengths=(9,))[0])
    cropped = backbone.featurize(Sample(id="ready", features=made, max_length=4))
    assert torch.equal(cropped["aatype"], made["aatype"][2:6])
    assert torch.equal(cropped["msa_feat"], made["msa_feat"][:, 2:6])
    output = backbone(backbone.collate([cropped]))
    assert output.single.shape[1] == 4


def test_processed_features_that_lack_something_are_refused(backbone, samples):
    made = backbone.featurize(samples(1)[0])
    del made["msa_mask"], made["aatype"]
    with pytest.raises(DataError, match="ready: the pre-computed features lack aatype, msa_mask"):
        backbone.featurize(Sample(id="ready", features=made))


def test_processed_features_with_a_batch_dimension_are_refused(backbone, samples):
    made = {k: v.unsqueeze(0) for k, v in backbone.featurize(samples(1)[0]).items()}
    with pytest.raises(DataError, match=r"ready: aatype has shape \(1, 7, 1\); expected \(length"):
        backbone.featurize(Sample(id="ready", features=made))


# Always the same


def test_a_sample_always_gives_the_same_features(shallow, raw, tmp_path):
    sample = Sample(id="known", features=raw)
    assert_same(shallow.featurize(sample), shallow.featurize(sample))
    masked = OpenFoldBackbone("tiny", mask_msa=True, max_msa_clusters=6, max_extra_msa=4)
    first = masked.featurize(sample)
    assert_same(first, masked.featurize(sample))
    assert first["bert_mask"].sum() > 0


def test_equal_content_gives_equal_features_whatever_its_name(shallow, raw):
    named = shallow.featurize(Sample(id="one", features=raw))
    renamed = shallow.featurize(Sample(id="two", features=raw))
    assert_same(named, renamed)


def test_global_random_state_is_left_alone(samples):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()
    backbone = OpenFoldBackbone("tiny", seed=3, mask_msa=True)
    backbone.featurize(samples(1)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(np.array_equal, np.random.get_state(), numpy_state))


def test_settings_are_part_of_the_key():
    keys = {
        OpenFoldBackbone("tiny", **settings).featurize_key()
        for settings in ({}, {"recycling": 1}, {"max_msa_clusters": 4}, {"mask_msa": True})
    }
    assert len(keys) == 4


# Batches


def test_collate_pads_with_zeros_and_keeps_what_the_model_reads(backbone, samples):
    made = [backbone.featurize(s) for s in samples(2, lengths=(5, 8))]
    batch = backbone.collate(made)
    assert batch.keys() == set(MODEL_INPUTS)
    assert batch["seq_mask"][..., 0].tolist() == [[1.0] * 5 + [0.0] * 3, [1.0] * 8]
    assert batch["template_torsion_angles_sin_cos"].shape == (2, 1, 8, 7, 2, 1)
    for i, features in enumerate(made):
        for key, tensor in features.items():
            if key in batch:
                window = batch[key][i][tuple(slice(0, n) for n in tensor.shape)]
                assert torch.equal(window, tensor), key
                assert batch[key][i].count_nonzero() == tensor.count_nonzero(), key


def test_other_numbers_of_recycling_passes_do_not_mix(backbone, samples):
    sample = samples(1)[0]
    more = OpenFoldBackbone("tiny", recycling=2).featurize(sample)
    with pytest.raises(DataError, match=r"different numbers of recycling passes: \[0, 2\]"):
        backbone.collate([backbone.featurize(sample), more])


def test_recycling_of_the_config_is_used_if_asked_for(samples):
    backbone = OpenFoldBackbone("tiny", recycling=None)
    assert backbone.featurize(samples(1)[0])["aatype"].shape == (7, 4)
