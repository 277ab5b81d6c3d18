"""The contract of a backbone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from molfun.backbones.base import Backbone, Layer
from molfun.backbones.splitting import PrefixSplitting, frozen_blocks, prefix_fingerprint
from molfun.errors import DataError
from molfun.nn import lora
from molfun.registry import BACKBONES
from molfun.sample import Sample
from molfun.testing.samples import sequences
from molfun.trunk import TrunkOutput

SampleFactory = Callable[..., list[Sample]]
KINDS = ("embedder", "early", "block", "structure_module", "output", "head")


class BackboneContract:
    """Tests of a registered backbone.

    A backbone returns the same tensors for the same sample, ignores padding, names the layer of
    each of its parameters, and has a fingerprint that identifies its weights.
    """

    backbone_class: ClassVar[type[Backbone]]
    settings: ClassVar[dict[str, Any]] = {}
    """Arguments of a small model in which every part changes the output (no zero weights)."""
    tolerance: ClassVar[float] = 1e-5
    """Largest difference that padding may make, relative to the largest value."""
    adapter_tolerance: ClassVar[float] = 0.0
    """Largest difference that adapters with B = 0 may make, relative to the largest value."""

    @pytest.fixture
    def samples(self) -> SampleFactory:
        """Return the function ``samples(n, lengths=...)``; override it for other kinds of data."""
        return sequences

    @classmethod
    def make(cls, **changes: Any) -> Backbone:
        """Build the backbone in eval mode."""
        return cls.backbone_class(**{**cls.settings, **changes}).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        """Return a model that all tests share which do not change it."""
        return cls.make()

    @staticmethod
    def run(backbone: Backbone, samples: list[Sample], *outputs: str) -> TrunkOutput:
        batch = backbone.collate([backbone.featurize(sample) for sample in samples])
        with torch.no_grad():
            return backbone(batch, outputs=outputs or ("single",))

    @staticmethod
    def spec(backbone: Backbone) -> lora.LoRASpec:
        if not backbone.lora_targets:
            pytest.skip("it names no layers for LoRA")
        return lora.LoRASpec(
            rank=2,
            alpha=4.0,
            dropout=0.0,
            target_modules=backbone.lora_targets,
            scope=backbone.block_prefix,
        )

    # --- a name --------------------------------------------------------------------------------

    def test_is_registered_under_its_name(self) -> None:
        assert BACKBONES[self.backbone_class.name] is self.backbone_class
        assert self.backbone_class.display_name

    # --- input ---------------------------------------------------------------------------------

    def test_features_are_tensors_and_always_the_same(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        # features are cached under the content of a sample, see molfun.training.feature_cache
        for sample in samples(3):
            first, second = backbone.featurize(sample), backbone.featurize(sample)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)

    def test_features_do_not_depend_on_the_label(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        # the label is no part of the cache key, so features must not contain it
        sample = samples(1)[0]
        other = replace(sample, target=99.0)
        first, second = backbone.featurize(sample), backbone.featurize(other)
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_featurize_draws_nothing_from_global_random_state(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        # a draw here would shift dropout, and a resumed run with cached features would differ
        state = torch.get_rng_state()
        backbone.featurize(samples(1)[0])
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_key_of_the_features_is_text(self, backbone: Backbone) -> None:
        assert isinstance(backbone.featurize_key(), str)
        assert backbone.featurize_key() == self.make().featurize_key()

    def test_a_sample_without_content_is_named(self, backbone: Backbone) -> None:
        with pytest.raises(DataError, match="empty-one has neither"):
            backbone.featurize(Sample(id="empty-one"))

    def test_every_sample_of_a_batch_has_its_row(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        given = samples(3, lengths=(4, 9, 6))
        assert self.run(backbone, given).mask.sum(1).tolist() == [4.0, 9.0, 6.0]

    def test_a_batch_carries_what_an_objective_adds(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        """Tensors that ``Objective.prepare`` adds to the features reach the objective."""
        rows = [backbone.featurize(sample) for sample in samples(2)]
        name = max(rows[0], key=lambda key: rows[0][key].numel())
        plain = backbone.collate(rows)
        batch = backbone.collate([{**row, "my_labels": row[name]} for row in rows])
        assert torch.equal(batch["my_labels"].sum(), plain[name].sum())
        with torch.no_grad():
            assert torch.equal(backbone(batch).single, backbone(plain).single)

    def test_a_mean_is_that_over_the_residues(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        given = samples(2, lengths=(4, 9))
        asked = self.run(backbone, given, "mean").need("mean")
        single = self.run(backbone, given, "single").need("single")
        assert asked.shape == (2, backbone.single_dim)
        for row, found, n in zip(single, asked, (4, 9), strict=True):
            limit = 1e-5 * float(row.abs().max())
            assert torch.allclose(found, row[:n].mean(0), rtol=0, atol=limit)

    # --- output --------------------------------------------------------------------------------

    def test_shapes(self, backbone: Backbone, samples: SampleFactory) -> None:
        output = self.run(backbone, samples(2, lengths=(4, 9)), "single", "pair")
        assert output.need("single").shape == (2, 9, backbone.single_dim)
        assert output.mask.tolist() == [[1.0] * 4 + [0.0] * 5, [1.0] * 9]
        if backbone.pair_dim is None:
            assert output.pair is None
        else:
            assert output.pair is not None
            assert output.pair.shape == (2, 9, 9, backbone.pair_dim)
        assert output.structure is None

    def test_only_what_is_asked_for_is_there(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        output = self.run(backbone, samples(1))
        assert output.pair is None
        assert output.structure is None

    def test_the_same_input_gives_the_same_bits(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        first, second = (self.run(backbone, samples(2)).need("single") for _ in range(2))
        assert torch.equal(first, second)

    def test_padding_changes_nothing(self, backbone: Backbone, samples: SampleFactory) -> None:
        given = samples(4, lengths=(3, 14, 8, 5))
        # bits may differ: a matrix product may add up a longer batch in another order
        together = self.run(backbone, given).need("single")
        for row, sample in zip(together, given, strict=True):
            alone = self.run(backbone, [sample]).need("single")[0]
            limit = self.tolerance * float(alone.abs().max())
            assert torch.allclose(row[: len(alone)], alone, rtol=0, atol=limit)

    def test_the_order_of_the_batch_changes_nothing(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        given = samples(3, lengths=(6,))
        forward = self.run(backbone, given).need("single")
        backward = self.run(backbone, given[::-1]).need("single").flip(0)
        limit = self.tolerance * float(forward.abs().max())
        assert torch.allclose(forward, backward, rtol=0, atol=limit)

    def test_outputs_of_single_samples_stack_into_a_batch(
        self, backbone: Backbone, samples: SampleFactory
    ) -> None:
        given = samples(2, lengths=(4, 7))
        layers = {backbone.layer_of(name).kind for name, _ in backbone.named_parameters()}
        names = ("single", "pair", "structure") if "structure_module" in layers else ("single",)
        stacked = TrunkOutput.stack([self.run(backbone, [s], *names) for s in given])
        batch = self.run(backbone, given, *names)
        assert torch.equal(stacked.mask, batch.mask)
        assert stacked.need("single").shape == batch.need("single").shape
        kept = batch.mask.bool()
        limit = self.tolerance * float(batch.need("single").abs().max())
        assert torch.allclose(
            stacked.need("single")[kept], batch.need("single")[kept], rtol=0, atol=limit
        )
        if batch.structure is not None and stacked.structure is not None:
            assert {k: v.shape for k, v in stacked.structure.items()} == {
                k: v.shape for k, v in batch.structure.items()
            }

    # --- parts ---------------------------------------------------------------------------------

    def test_blocks_are_those_under_the_prefix_in_order(self, backbone: Backbone) -> None:
        named = {id(module): name for name, module in backbone.named_modules()}
        names = [named[id(block)] for block in backbone.blocks()]
        assert names == [f"{backbone.block_prefix}.{i}" for i in range(len(names))]
        assert len(names) >= 1

    def test_blocks_run_in_order(self, backbone: Backbone, samples: SampleFactory) -> None:
        # frozen leading blocks are cached, which is only right if later ones run after them
        order: list[int] = []

        def note(index: int) -> Any:
            return lambda *_: order.append(index)

        hooks = [b.register_forward_hook(note(i)) for i, b in enumerate(backbone.blocks())]
        try:
            self.run(backbone, samples(1))
        finally:
            for hook in hooks:
                hook.remove()
        assert order == list(range(len(backbone.blocks())))

    def test_every_parameter_has_its_layer(self, backbone: Backbone) -> None:
        layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
        assert {layer.kind for layer in layers.values()} <= set(KINDS)
        for i, block in enumerate(backbone.blocks()):
            prefix = f"{backbone.block_prefix}.{i}."
            inside = {name: layer for name, layer in layers.items() if name.startswith(prefix)}
            assert len(inside) == len(list(block.parameters()))
            assert set(inside.values()) == {Layer("block", i)}
        indices = {layer.index for layer in layers.values() if layer.kind == "block"}
        assert indices == set(range(len(backbone.blocks())))

    def test_default_lora_targets_are_there_in_every_block(self) -> None:
        backbone = self.make()
        lora.inject(backbone, self.spec(backbone))
        adapted = [name for name, _ in lora.parameters(backbone)]
        for i in range(len(backbone.blocks())):
            inside = [n for n in adapted if n.startswith(f"{backbone.block_prefix}.{i}.")]
            for target in backbone.lora_targets:
                assert any(f".{target}.lora_A." in name for name in inside)

    def test_adapters_change_nothing_at_first(self, samples: SampleFactory) -> None:
        # B starts at zero (Hu et al. 2021, section 4.1), so training starts from the base model
        backbone = self.make()
        before = self.run(backbone, samples(2)).need("single")
        lora.inject(backbone, self.spec(backbone))
        after = self.run(backbone.eval(), samples(2)).need("single")
        limit = self.adapter_tolerance * float(before.abs().max())
        assert torch.allclose(after, before, rtol=0, atol=limit)

    # --- identity ------------------------------------------------------------------------------

    def test_the_fingerprint_is_that_of_the_weights(self) -> None:
        # one changed number anywhere must show: a checkpoint on other base weights is refused by it
        backbone, again = self.make(seed=1), self.make(seed=1)
        assert backbone.fingerprint() == again.fingerprint()
        assert backbone.fingerprint() != self.make(seed=2).fingerprint()
        # the first and the last one: a digest over a part of the weights would miss a change
        for parameter in (next(iter(again.parameters())), list(again.parameters())[-1]):
            before = again.fingerprint()
            with torch.no_grad():
                parameter.view(-1)[0] += 1
            assert again.fingerprint() != before

    def test_adapters_are_no_part_of_the_base(self) -> None:
        backbone = self.make()
        base, state = backbone.fingerprint(), backbone.state_fingerprint()
        names = backbone.base_state_dict().keys()
        lora.inject(backbone, self.spec(backbone))
        assert backbone.base_state_dict().keys() == names
        assert backbone.fingerprint() == base
        assert backbone.state_fingerprint() != state

    def test_weights_round_trip(self, samples: SampleFactory) -> None:
        first, second = self.make(seed=1), self.make(seed=2)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.fingerprint() == first.fingerprint()
        given = samples(2)
        assert torch.equal(
            self.run(first, given).need("single"), self.run(second, given).need("single")
        )

    def test_the_config_rebuilds_the_architecture_from_json(self) -> None:
        backbone = self.make(seed=1)
        # a checkpoint holds plain values, from which another process builds the architecture
        config = json.loads(json.dumps(backbone.config_dict))
        assert config == backbone.config_dict
        again = self.backbone_class(**self.backbone_class.arguments_from(config))
        shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
        assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
        assert again.config_dict == backbone.config_dict
        assert again.featurize_key() == backbone.featurize_key()

    def test_construction_draws_nothing_from_global_random_state(self) -> None:
        state = torch.get_rng_state()
        self.make(seed=1)
        assert torch.equal(torch.get_rng_state(), state)

    # --- training ------------------------------------------------------------------------------

    def test_every_block_gets_a_gradient(self, samples: SampleFactory) -> None:
        backbone = self.make()
        batch = backbone.collate([backbone.featurize(s) for s in samples(1)])
        backbone(batch).single.square().sum().backward()
        for block in backbone.blocks():
            assert any(p.grad is not None and bool(p.grad.any()) for p in block.parameters())

    # float16 overflows at 65,504: a mask of -1e9 or a norm over an empty row gives NaN there
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
    def test_output_is_finite_in_every_precision(
        self, samples: SampleFactory, precision: str
    ) -> None:
        backbone = self.make()
        backbone.set_precision(precision)
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            assert torch.isfinite(self.run(backbone, samples(2)).need("single")).all()

    def test_it_is_a_module(self, backbone: Backbone) -> None:
        assert isinstance(backbone, nn.Module)
        assert isinstance(backbone.single_dim, int)

    # --- the frozen prefix -----------------------------------------------------------------------

    def test_frozen_blocks_are_counted_from_the_front(self) -> None:
        backbone = self.make()
        backbone.requires_grad_(False)
        n = len(backbone.blocks())
        assert frozen_blocks(backbone) == n
        backbone.blocks()[n - 1].requires_grad_(True)
        assert frozen_blocks(backbone) == n - 1
        backbone.requires_grad_(True)
        assert frozen_blocks(backbone) == 0

    def test_prefix_and_suffix_are_the_whole(self, samples: SampleFactory) -> None:
        backbone = self.make()
        given = samples(3, lengths=(4, 9, 6))
        if not isinstance(backbone, PrefixSplitting) or not backbone.splits_before(1, ("single",)):
            pytest.skip(f"{backbone.display_name} does not split its forward pass")
        whole = self.run(backbone, given)
        real = whole.mask.bool()
        with torch.no_grad():
            # a run may freeze any number of blocks
            for block in range(1, len(backbone.blocks()) + 1):
                states = [
                    backbone.run_prefix(backbone.collate([backbone.featurize(s)]), block)
                    for s in given
                ]
                at_once = backbone.run_prefix(
                    backbone.collate([backbone.featurize(s) for s in given]), block
                )
                limit = self.tolerance * float(whole.need("single").abs().max())
                for state in (backbone.join_states(states), at_once):
                    again = backbone.run_suffix(state, block, outputs=("single",))
                    assert torch.equal(again.mask, whole.mask)
                    difference = again.need("single")[real] - whole.need("single")[real]
                    assert float(difference.abs().max()) <= limit

    def test_the_prefix_fingerprint_is_that_of_the_prefix(self) -> None:
        # cache keys: a change behind the prefix must keep its entries, any other must not
        backbone = self.make()
        n = len(backbone.blocks())
        prints = [prefix_fingerprint(backbone, k) for k in range(n + 1)]
        assert len(set(prints)) == n + 1
        with torch.no_grad():
            next(backbone.blocks()[n - 1].parameters()).view(-1)[0] += 1
        changed = [prefix_fingerprint(backbone, k) for k in range(n + 1)]
        assert changed[:n] == prints[:n]
        assert changed[n] != prints[n]
