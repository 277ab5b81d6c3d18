"""The contract of a head."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.models.build import build_head
from molfun.registry import HEADS, TASKS
from molfun.trunk import TrunkOutput

SINGLE, PAIR = 12, 6


def representations(
    lengths: tuple[int, ...], *, seed: int = 0, requires_grad: bool = False
) -> TrunkOutput:
    """Draw representations with noise in the padding, so that a head which reads it fails."""
    generator = torch.Generator().manual_seed(seed)
    n, longest = len(lengths), max(lengths)
    single = torch.randn(n, longest, SINGLE, generator=generator)
    mask = torch.tensor([[1.0] * k + [0.0] * (longest - k) for k in lengths])
    places = torch.arange(longest)
    pae = 30 * torch.rand(n, longest, longest, generator=generator)
    return TrunkOutput(
        structure={
            "plddt": 100 * torch.rand(n, longest, generator=generator),
            "pae": pae.requires_grad_(requires_grad),
            "ptm": torch.rand(n, generator=generator),
            # two chains, the first of two residues
            "residue_index": (places + 200 * (places > 1)).repeat(n, 1),
        },
        single=single.requires_grad_(requires_grad),
        mask=mask,
        pair=torch.randn(n, longest, longest, PAIR, generator=generator),
        mean=torch.randn(n, SINGLE, generator=generator).requires_grad_(requires_grad),
        cls=torch.randn(n, SINGLE, generator=generator).requires_grad_(requires_grad),
    )


def rows(batch: TrunkOutput, which: list[int]) -> TrunkOutput:
    """Select samples of a batch."""
    return TrunkOutput.from_tensors({n: t[which] for n, t in batch.tensors().items()})


class HeadContract:
    """Tests of a registered head.

    A head reads the representations of a padded batch. Its output for a sample depends on that
    sample alone. It computes in float32 under autocast, and can be rebuilt from its `config_dict`.
    """

    name: ClassVar[str]
    """Registered name of the head."""
    settings: ClassVar[dict[str, Any]] = {}
    """Arguments other than ``single_dim`` and ``pair_dim``."""

    def make(self, **changes: Any) -> Head:
        """Build the head for representations of width `SINGLE` and `PAIR`."""
        cls = HEADS[self.name]
        known = inspect.signature(cls).parameters
        dims = {k: v for k, v in (("single_dim", SINGLE), ("pair_dim", PAIR)) if k in known}
        torch.manual_seed(0)
        return cls(**{**dims, **self.settings, **changes}).eval()

    def labels(self, output: torch.Tensor, row: int, n: int) -> torch.Tensor:
        """Return the output of one sample without padding, for a head of any level."""
        level = self.make().config_dict.get("level", "sequence")
        inside = {"sequence": 0, "residue": 1, "pair": 2}[level]
        return output[row][(slice(n),) * inside]

    def test_is_a_head_for_a_known_task(self) -> None:
        head = self.make()
        assert isinstance(head, Head)
        assert head.default_task in TASKS
        assert set(head.needs) <= {"single", "pair", "mean", "cls", "structure"}

    def test_a_wrong_dimension_is_one_clear_error(self) -> None:
        if "single_dim" not in inspect.signature(HEADS[self.name]).parameters:
            pytest.skip("this head takes no single representation")
        # the model settles widths before it builds the head, and so names head_config
        backbone: Any = SimpleNamespace(single_dim=SINGLE, pair_dim=PAIR)
        task: Any = SimpleNamespace(name="any", n_outputs=1, level="sequence")
        with pytest.raises(
            ConfigError, match="head_config has single_dim=3, but the backbone gives"
        ):
            build_head(self.name, {"single_dim": 3}, backbone=backbone, task=task, seed=0)

    def test_gives_a_prediction_for_every_sample(self) -> None:
        head = self.make()
        prediction = head(representations((3, 8, 5)))["prediction"]
        config = {"level": "sequence", "n_outputs": 1, **head.config_dict}
        shape = {"sequence": (3,), "residue": (3, 8), "pair": (3, 8, 8)}[config["level"]]
        shape += (config["n_outputs"],) * (config["n_outputs"] > 1)
        assert prediction.shape == shape, (
            f"labels have the shape {shape}, the predictions {tuple(prediction.shape)}: see "
            f"Head.as_outputs"
        )
        assert torch.isfinite(prediction).all()

    def test_reads_no_more_than_it_says(self) -> None:
        # the engine computes and caches what `needs` lists, and nothing else
        head, batch = self.make(), representations((3, 8))
        expected = head(batch)["prediction"]
        assert torch.equal(head(batch.select(head.needs))["prediction"], expected)

    def test_ignores_padding(self) -> None:
        head, batch = self.make(), representations((3, 8))
        noisy = {n: t.clone() for n, t in batch.tensors().items()}
        # large numbers in the padding: a mean or softmax over it would change visibly
        noisy["single"][0, 3:] = 1e3
        for name in ("pair", "structure.pae"):
            noisy[name][0, 3:] = noisy[name][0, :, 3:] = 1e3
        noisy["structure.plddt"][0, 3:] = 1e3
        noisy["structure.residue_index"][0, 3:] = 0
        alone = {n: t[:1] for n, t in batch.tensors().items()}
        for name in ("single", "mask", "structure.plddt", "structure.residue_index"):
            alone[name] = alone[name][:, :3]
        for name in ("pair", "structure.pae"):
            alone[name] = alone[name][:, :3, :3]
        expected = self.labels(head(batch)["prediction"], 0, 3)
        changed = head(TrunkOutput.from_tensors(noisy))["prediction"]
        assert torch.equal(self.labels(changed, 0, 3), expected)
        single = head(TrunkOutput.from_tensors(alone))["prediction"]
        assert torch.allclose(self.labels(single, 0, 3), expected, rtol=0, atol=1e-5)

    def test_does_not_depend_on_the_rest_of_the_batch(self) -> None:
        head, batch = self.make(), representations((8, 4, 6))
        order = [2, 0, 1]
        expected = head(batch)["prediction"][order]
        shuffled = head(rows(batch, order))["prediction"]
        assert torch.allclose(shuffled, expected, rtol=0, atol=1e-6)

    def test_every_parameter_and_the_trunk_get_a_gradient(self) -> None:
        head, batch = self.make(), representations((3, 8), requires_grad=True)
        prediction = head(batch)["prediction"]
        kept = [self.labels(prediction, row, n) for row, n in enumerate((3, 8))]
        torch.stack([k.square().sum() for k in kept]).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())
        leaves = {"single": batch.single, "mean": batch.mean, "cls": batch.cls}
        leaves["structure"] = (batch.structure or {})["pae"]
        for name in set(head.needs) & leaves.keys():
            grad = getattr(leaves[name], "grad", None)
            assert grad is not None
            assert bool(grad[0].any())
            # padding must not train the backbone either
            assert name not in ("single", "structure") or not bool(grad[0, 3:].any())

    def test_config_rebuilds_it_from_json(self) -> None:
        head = self.make()
        config = json.loads(json.dumps(dict(head.config_dict)))
        again = HEADS[self.name](**config).eval()
        again.load_state_dict(head.state_dict())
        batch = representations((3, 8))
        assert torch.equal(again(batch)["prediction"], head(batch)["prediction"])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_stays_in_float32_under_autocast(self, dtype: torch.dtype) -> None:
        # a prediction near 1200 would come in steps of 1 in float16, and of 8 in bfloat16
        head, batch = self.make(), representations((3, 8))
        half = TrunkOutput.from_tensors(
            {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.tensors().items()}
        )
        with torch.autocast("cpu", dtype=dtype):
            assert head(half)["prediction"].dtype == torch.float32

    def test_the_scale_of_the_inputs_is_learned_once(self) -> None:
        """Shifting and scaling all inputs changes no prediction, once their scale was learned."""
        head, batch = self.make(), representations((9, 9, 9, 9, 9, 9))
        if not dict(head.config_dict).get("standardize"):
            pytest.skip("this head takes its inputs as they are")
        (name,) = head.needs
        head.fit_inputs(rows(batch, [i]) for i in range(6))
        state = {k: v.clone() for k, v in head.state_dict().items()}
        assert bool(state["inputs_fitted"])
        values = batch.need(name).detach().reshape(-1, SINGLE)
        assert torch.allclose(state["input_mean"], values.mean(0), atol=1e-5)
        assert torch.allclose(state["input_std"], values.std(0, unbiased=False), atol=1e-5)
        moved = dict(batch.tensors()) | {name: batch.need(name) * 3 + 100}
        other = self.make()
        other.load_state_dict(self.make().state_dict())
        other.fit_inputs(rows(TrunkOutput.from_tensors(moved), [i]) for i in range(6))
        expected = head(batch)["prediction"]
        found = other(TrunkOutput.from_tensors(moved))["prediction"]
        assert torch.allclose(found, expected, rtol=0, atol=1e-3)
        head.fit_inputs(rows(TrunkOutput.from_tensors(moved), [i]) for i in range(6))
        assert all(torch.equal(v, state[k]) for k, v in head.state_dict().items())
