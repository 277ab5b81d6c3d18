"""Memory and time that are predicted before a run, against real steps."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PET_TINY, build_atoms
from torch.utils.flop_counter import FlopCounterMode

from molfun.backbones.splitting import frozen_blocks
from molfun.data.affinity import AffinityDataset
from molfun.data.atoms import AtomsDataset
from molfun.data.sequences import SequenceDataset
from molfun.data.series.demo import double_well
from molfun.models import cost, memory
from molfun.models.skeleton import Skeleton
from molfun.models.structure import MolfunStructureModel
from molfun.strategies.full import FullFinetune
from molfun.strategies.head_only import HeadOnlyFinetune

CPU = torch.device("cpu")
SMALL = {"num_layers": 4, "embed_dim": 160, "attention_heads": 8}


def sequences(n: int, length: int) -> SequenceDataset:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for _ in range(n)]
    return SequenceDataset.from_list([(text, float(i)) for i, text in enumerate(texts)])


def built(kind: str) -> tuple[MolfunStructureModel, Any]:
    """Return a model of a kind, of which all trains, and data for it."""
    name, settings, data = {
        "sequences": ("esm2", {"config": SMALL, "head": "regression"}, sequences(24, 80)),
        "series": (
            "timeseries",
            {"head": "binary", "backbone_config": {"d_input": 4}},
            double_well(n_series=64, n_frames=(60, 61), seed=0),
        ),
        "atoms": ("pet", {"config": PET_TINY, "head": "energy"}, build_atoms(24)),
        "structures": (
            "openfold",
            {"config": "tiny", "head": "affinity"},
            AffinityDataset.synthetic(4, length=48),
        ),
    }[kind]  # fmt: skip
    model = MolfunStructureModel(name, device="cpu", **settings)
    if kind == "atoms":
        data = AtomsDataset([s.atoms for s in data], [s.target for s in data])
    return model, data


def kept_bytes(model: MolfunStructureModel, samples: list[Any]) -> int:
    """Return the bytes that a forward pass keeps, without the weights."""
    backbone = model.backbone.train()
    batch = backbone.collate([backbone.featurize(sample) for sample in samples])
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = backbone(batch)  # noqa: F841  # its graph holds what was kept
        return sum(kept.values())


@pytest.mark.parametrize("kind", ["sequences", "series", "atoms"])
def test_a_predicted_peak_is_what_a_step_keeps(kind: str) -> None:
    model, data = built(kind)
    FullFinetune().setup(model)
    sample = data[int(np.argmax(data.lengths))]
    found = memory.forecast(
        model.backbone, torch.utils.data.DataLoader(data, batch_size=4), CPU, trained=1
    )
    assert found is not None
    assert found.fits
    assert sample.id in found.text
    kept = kept_bytes(model, [sample] * 4)
    assert 0.5 < found.peak / kept < 3, (found.peak, kept)


@pytest.mark.proof  # a measured time: other work on the machine changes it
@pytest.mark.parametrize("kind", ["sequences", "series", "atoms", "structures"])
def test_a_predicted_time_is_that_of_a_run_within_the_stated_factor(kind: str) -> None:
    model, data = built(kind)
    strategy = FullFinetune(lr=1e-4)
    strategy.setup(model)
    size = data.default_batch_size
    found = cost.epoch_cost(model.backbone, data, CPU, batch_size=size)
    assert found is not None
    loader = torch.utils.data.DataLoader(data, batch_size=size, collate_fn=data.collate_fn)
    model.fit(loader, strategy=strategy, epochs=1)  # what is made once is made
    start = time.process_time()
    model.fit(loader, strategy=strategy, epochs=1)
    taken = time.process_time() - start
    assert 1 / cost.WITHIN < found.first / taken < cost.WITHIN, (found, taken)


def test_operations_of_a_block_are_those_that_torch_counts() -> None:
    # on the meta device, since torch does not see into faster code
    backbone = Skeleton("openfold", config="tiny", head="affinity").backbone.train()
    sample = AffinityDataset.synthetic(1, length=48)[0]
    batch = backbone.collate([backbone.featurize(sample)])
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone({name: tensor.to("meta") for name, tensor in batch.items()})
    counts = {name: sum(n.values()) for name, n in counted.flop_counts.items()}
    (own,) = [n for name, n in counts.items() if name.endswith("evoformer.blocks.0")]
    assert backbone.block_flops(sample) == pytest.approx(own, rel=0.15)


def test_frozen_blocks_count_once_and_lengths_count() -> None:
    model, data = built("sequences")
    FullFinetune().setup(model)
    full = cost.epoch_cost(model.backbone, data, CPU, batch_size=4)
    HeadOnlyFinetune().setup(model)
    assert frozen_blocks(model.backbone) == len(model.backbone.blocks())
    head = cost.epoch_cost(model.backbone, data, CPU, batch_size=4)
    longer = cost.epoch_cost(model.backbone, sequences(24, 240), CPU, batch_size=4)
    assert full is not None
    assert head is not None
    assert longer is not None
    assert full.flops == pytest.approx(3 * head.flops)
    assert full.first == full.later
    assert head.later == pytest.approx(6 * model.backbone.step_seconds)
    assert longer.flops == pytest.approx(head.flops * 242 / 82)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"),
                                               (5399, "90 min"), (5400, "1.5 h")])  # fmt: skip
def test_durations_have_the_unit_of_their_size(seconds: float, text: str) -> None:
    assert cost.duration(seconds) == text
