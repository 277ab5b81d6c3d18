"""AlphaFold's losses on coordinates: values and gradients against openfold's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_structure

from molfun import MolfunStructureModel
from molfun.backbones.openfold import chains, fape, features, losses
from molfun.errors import ConfigError, DataError
from molfun.models.build import HeadSettings
from molfun.protein import ATOM_NAMES, Protein
from molfun.sample import Sample
from molfun.tasks import StructureTask
from molfun.training.inputs import Inputs
from molfun.training.supervised import SupervisedRunner

# R, D, E, F, Y have atoms with two names; the last two chains are equal
SEQUENCES = ("MKRDEFYWHA", "GRDFEYKLMNPQST")
WEIGHTS = dict.fromkeys(("fape", "supervised_chi", "distogram", "plddt", "tm"), 0.5)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    proteins = [build_structure(sequence, seed=5 + i) for i, sequence in enumerate(SEQUENCES)]
    return [Sample(id=f"s{i}", protein=p, target=p) for i, p in enumerate(proteins)]


@functools.cache
def built(kernels: str, **settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel(
        "openfold",
        config="tiny",
        backbone_config=settings,
        kernels=kernels,  # type: ignore[arg-type]  # parametrised
    )


def structure_model(*, kernels: str = "stock", **task: Any) -> MolfunStructureModel:
    """Return a model with an untrained head; those of equal settings share a backbone."""
    settings = {k: task.pop(k) for k in ("recycling", "recycles", "mask_msa") if k in task}
    model = built(kernels, **settings)
    model.put_heads({"": HeadSettings(head="structure", task_config=task)}, seed=0)
    model.requires_grad_(requires_grad=True)
    return model.eval()


def loss_of(model: MolfunStructureModel, samples: Sequence[Sample]) -> torch.Tensor:
    model.zero_grad()
    runner = SupervisedRunner(model.backbone, model.heads, device=torch.device("cpu"))
    inputs = Inputs.of(samples)
    total = runner.loss(inputs, runner.outputs(inputs)).total
    total.backward()  # type: ignore[no-untyped-call]  # torch's
    return total.detach()


def stock_features(model: MolfunStructureModel, protein: Protein) -> dict[str, torch.Tensor]:
    """Run openfold's own pipeline with labels, as in its training."""
    backbone: Any = model.backbone
    raw = features.raw_from_protein(protein, None)
    raw["resolution"] = np.array([protein.resolution or 0.0], np.float32)
    data = copy.deepcopy(backbone.data_config)
    with data.unlocked():
        data.predict.supervised = True
    seed = int(Sample(id="x", protein=protein).content_key()[:8], 16)
    return features.process(raw, data, seed=seed)


def stock_loss(
    model: MolfunStructureModel, protein: Protein, weights: dict[str, float], clamped: float
) -> torch.Tensor:
    from openfold.utils.loss import AlphaFoldLoss

    backbone: Any = model.backbone
    config = copy.deepcopy(backbone.config.loss)
    for name in ("fape", "supervised_chi", "distogram", "masked_msa", "violation", "tm"):
        config[name].weight = weights.get(name, 0.0)
    config.plddt_loss.weight = weights.get("plddt", 0.0)
    config.experimentally_resolved.weight = weights.get("experimentally_resolved", 0.0)
    batch = {k: v[None] for k, v in stock_features(model, protein).items()}
    out = backbone.model({key: batch[key] for key in backbone._inputs})
    last = {key: value[..., -1] for key, value in batch.items()}
    last["use_clamped_fape"] = torch.tensor([clamped])
    last["resolution"] = last["resolution"].reshape(1)
    last["seq_length"] = last["seq_length"].reshape(1)
    total: torch.Tensor = AlphaFoldLoss(config)(out, last)
    return total


@pytest.mark.parametrize("kernels", ["stock", "fast"])
@pytest.mark.parametrize(
    "weights",
    [
        WEIGHTS,
        {"violation": 1.0, "experimentally_resolved": 1.0},
        {"fape": 1.0},
    ],
    ids=["most", "violation", "fape"],
)
def test_loss_and_gradients_are_those_of_openfold_per_structure(
    samples: list[Sample], weights: dict[str, float], kernels: str
) -> None:
    others = dict.fromkeys(StructureTask().weights, 0.0)
    model = structure_model(**{**others, **weights}, clamped_fape=0.9, kernels=kernels)
    ours = loss_of(model, samples)
    found = {n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None}

    model.zero_grad()
    plain = built("stock")  # of the same seed
    plain.zero_grad()
    total = sum(stock_loss(plain, s.target, weights, 0.9) for s in samples)
    assert isinstance(total, torch.Tensor)
    total.backward()  # type: ignore[no-untyped-call]  # torch's
    assert float(ours) == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = {n: p.grad for n, p in plain.backbone.named_parameters() if p.grad is not None}
    assert any(name.startswith("model.evoformer") for name in wanted)
    whole = torch.stack([g.norm() for g in wanted.values()]).norm()
    difference = torch.stack(
        [(found.get(n, torch.zeros_like(g)) - g).norm() for n, g in wanted.items()]
    ).norm()
    assert float(difference / whole) < 1e-5


def test_a_padded_batch_has_the_sum_of_the_losses_of_its_structures(samples: list[Sample]) -> None:
    model = structure_model(violation=0.1)
    together = loss_of(model, samples)
    single = sum(float(loss_of(model, [one])) for one in samples)
    assert float(together) == pytest.approx(single, rel=1e-5)


def test_labels_are_those_of_openfolds_training_pipeline(samples: list[Sample]) -> None:
    model = structure_model()
    protein = samples[0].target
    wanted = stock_features(model, protein)
    label = torch.from_numpy(protein.atom_positions)[None]
    ours = losses.ground_truth(
        aatype=torch.from_numpy(protein.aatype)[None],
        positions=label,
        mask=torch.from_numpy(protein.atom_mask)[None],
        residue_index=torch.from_numpy(protein.residue_index)[None],
        resolution=torch.tensor([2.0]),
    )
    compared = set(ours) & set(wanted)
    assert {
        "atom14_gt_positions", "atom14_alt_gt_positions", "atom14_gt_exists", "pseudo_beta",
        "rigidgroups_gt_frames", "rigidgroups_alt_gt_frames", "backbone_rigid_tensor",
        "backbone_rigid_mask", "chi_angles_sin_cos", "chi_mask", "atom14_atom_is_ambiguous",
        "all_atom_positions", "all_atom_mask", "resolution",
    } <= compared  # fmt: skip
    for name in sorted(compared):
        expected = wanted[name][..., -1]
        assert torch.equal(ours[name].squeeze(0).to(expected), expected.squeeze(0)), name


def test_symmetric_atoms_are_renamed_as_openfold_does(samples: list[Sample]) -> None:
    from openfold.utils.loss import compute_renamed_ground_truth

    protein = samples[1].target
    labels = losses.ground_truth(
        aatype=torch.from_numpy(protein.aatype)[None],
        positions=torch.from_numpy(protein.atom_positions)[None],
        mask=torch.from_numpy(protein.atom_mask)[None],
        residue_index=torch.from_numpy(protein.residue_index)[None],
        resolution=torch.tensor([2.0]),
    )
    drawn = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(4):
        noise = 3 * torch.randn(labels["atom14_gt_positions"].shape, generator=drawn)
        predicted = labels["atom14_gt_positions"] + noise
        ours, wanted = (
            fape.renamed(labels, predicted),
            compute_renamed_ground_truth(labels, predicted),
        )
        assert ours.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(ours[name], value), name
        seen |= set(wanted["alt_naming_is_better"].flatten().tolist())
    assert seen == {0.0, 1.0}


def test_a_structure_without_resolution_has_no_loss_of_confidence() -> None:
    protein = build_structure("MKRDEFYWHA", resolution=None)
    sample = Sample(id="a", protein=protein, target=protein)
    nothing = dict.fromkeys(StructureTask().weights, 0.0)
    assert float(loss_of(structure_model(**{**nothing, "plddt": 1.0}), [sample])) == 0
    assumed = structure_model(**{**nothing, "plddt": 1.0}, resolution=2.0)
    assert float(loss_of(assumed, [sample])) > 0


def test_a_term_that_is_not_finite_is_a_loss_that_is_not_finite(samples: list[Sample]) -> None:
    model = structure_model()
    # openfold's own TM-score raises IndexError where the bias of its head is NaN
    for name in ("model.aux_heads.plddt.linear_3.bias", "model.aux_heads.tm.linear.bias"):
        parameter = model.backbone.get_parameter(name)
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.fill_(torch.nan)
        assert torch.isnan(loss_of(model, samples))
        with torch.no_grad():
            parameter.copy_(kept)


def test_symmetric_atoms_may_have_either_name(samples: list[Sample]) -> None:
    model = structure_model(distogram=0.0, plddt=0.0, tm=0.0, experimentally_resolved=0.0)
    before = loss_of(model, samples[:1])
    protein = samples[0].target
    row = protein.sequence.index("F")
    positions = protein.atom_positions.copy()
    for one, other in (("CD1", "CD2"), ("CE1", "CE2")):
        i, j = ATOM_NAMES.index(one), ATOM_NAMES.index(other)
        positions[row, [i, j]] = positions[row, [j, i]]
    swapped = replace(protein, atom_positions=positions)
    assert not np.array_equal(swapped.atom_positions, protein.atom_positions)
    after = loss_of(model, [replace(samples[0], target=swapped)])
    assert float(after) == pytest.approx(float(before), rel=1e-4)


def test_identical_chains_may_have_either_name() -> None:
    sequence = "MKRDEFYW"
    model = structure_model(distogram=0.0, plddt=0.0, tm=0.0, experimentally_resolved=0.0)
    whole = Protein.from_chains([sequence, sequence, "GAV"])
    (folded,) = built("stock").fold([Sample(id="dimer", protein=whole)], recycles=0)
    near = replace(folded.protein, resolution=2.0)
    noise = np.random.default_rng(0).normal(0, 0.3, near.atom_positions.shape)
    near = replace(near, atom_positions=near.atom_positions + noise.astype(np.float32))
    order = [*range(8, 16), *range(8), *range(16, 19)]
    swapped = replace(
        near, atom_positions=near.atom_positions[order], atom_mask=near.atom_mask[order]
    )
    one, other = (
        float(loss_of(model, [Sample(id="dimer", protein=whole, target=target)]))
        for target in (near, swapped)
    )
    assert other == pytest.approx(one, rel=1e-5)
    # and so are the metrics
    samples = [Sample(id="dimer", protein=near, target=t) for t in (near, swapped)]
    measured = [model.evaluate([sample]) for sample in samples]
    assert measured[1] == pytest.approx(measured[0], nan_ok=True)
    named = replace(near, chain_index=np.array([0] * 8 + [1] * 8 + [2] * 3))
    types = named.aatype.copy()
    types[9] = 0  # no longer the same chain: order counts
    predicted = torch.from_numpy(near.atom_positions)
    places = {"atom_positions": swapped.atom_positions, "atom_mask": swapped.atom_mask}
    other = label_of(replace(named, aatype=types, **places))
    assert torch.equal(chains.renamed(other, predicted)["positions"], other["positions"])
    same = chains.renamed(label_of(replace(named, **places)), predicted)
    assert torch.allclose(same["positions"] * same["mask"][..., None],
                          predicted * same["mask"][..., None])  # fmt: skip
    # a crop may show other residues of each chain: the copy's coordinates lie outside of it
    rows = np.array([0, 1, 2, 3, 12, 13, 14, 15, 16])
    crop = replace(named, **places)._cropped(rows, "by hand")
    found = chains.renamed(label_of(crop), predicted[rows])
    assert torch.equal(found["positions"], same["positions"][rows])
    assert torch.equal(found["mask"], same["mask"][rows])


def label_of(protein: Protein) -> dict[str, torch.Tensor]:
    """Return what the losses get of a structure."""
    task = StructureTask()
    (rows,) = task.encode([protein])
    return task._label(rows, len(protein), torch.from_numpy(protein.aatype))


def test_a_masked_alignment_is_reconstructed(samples: list[Sample]) -> None:
    nothing = dict.fromkeys(StructureTask().weights, 0.0)
    masked = structure_model(**{**nothing, "masked_msa": 2.0}, mask_msa=True)
    assert masked.task.term_names == ("masked_msa_loss",)  # type: ignore[union-attr]  # is one
    assert float(loss_of(masked, samples)) == pytest.approx(
        sum(
            float(stock_loss(masked, s.target, {"masked_msa": 2.0}, 0.9).detach()) for s in samples
        ),
        rel=1e-5,
    )
    assert float(loss_of(masked, samples)) > 0
    made = masked.backbone.featurize(samples[0])
    without = {k: v for k, v in made.items() if k not in ("true_msa", "bert_mask")}
    given = Sample(id="given", features=without, target=samples[0].target)
    with pytest.raises(DataError, match="masked_msa needs a masked alignment"):
        loss_of(masked, [given])
    plain = structure_model(**{**nothing, "masked_msa": 2.0, "fape": 1.0})
    assert "masked_msa_loss" not in plain.task.term_names  # type: ignore[union-attr]  # as above


@pytest.mark.parametrize("recycling", [0, 1])
def test_cached_blocks_give_the_loss_of_the_whole(samples: list[Sample], recycling: int) -> None:
    model = structure_model(recycling=recycling, mask_msa=True)
    whole = loss_of(model, samples)
    backbone = model.backbone
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("aux_heads" in name)
    runner = SupervisedRunner(backbone, model.heads, device=torch.device("cpu"))
    assert runner.forward.frozen.splits
    assert runner.forward.frozen.n_blocks == 2
    inputs = Inputs.of(samples)
    assert float(runner.loss(inputs, runner.outputs(inputs)).total.detach()) == pytest.approx(
        float(whole), rel=1e-5
    )


def test_blocks_are_not_split_off_where_recycling_passes_through_what_trains() -> None:
    for settings, module in (
        ({"recycling": 1}, "structure_module"),
        ({"recycling": 1, "recycles": "uniform"}, "aux_heads"),
    ):
        model = structure_model(**settings)
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(module in name)
        runner = SupervisedRunner(model.backbone, model.heads, device=torch.device("cpu"))
        assert not runner.forward.frozen.splits


def test_recycling_passes_are_drawn_in_training_alone(samples: list[Sample]) -> None:
    model = structure_model(recycling=3, recycles="uniform")
    backbone: Any = model.backbone
    batch = backbone.collate([backbone.featurize(samples[0])])
    assert backbone._drawn(batch)["aatype"].shape[-1] == 4
    backbone.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [backbone._drawn(batch)["aatype"].shape[-1] for _ in range(60)]
    model.eval()
    assert set(drawn) == {1, 2, 3, 4}
    assert backbone.config_dict["recycles"] == "uniform"
    with pytest.raises(ConfigError, match="recycles"):
        structure_model(recycles="sometimes")


def test_a_label_must_have_the_residues_of_its_sample(samples: list[Sample]) -> None:
    wrong = replace(samples[0], target=samples[1].target)
    with pytest.raises(DataError, match="other residues than its sample"):
        loss_of(structure_model(), [wrong])
