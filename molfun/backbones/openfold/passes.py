"""Run AlphaFold's forward pass in parts: the frozen blocks, the rest, and the structure.

The stock forward pass does the work of each part; hooks stop it where a part ends. The tail of
``AlphaFold.iteration`` (structure module and auxiliary heads) is called here for activations that
were kept.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from molfun.backbones.base import Features
from molfun.backbones.openfold import folding, losses
from molfun.backbones.own_heads import OwnHeads
from molfun.backbones.splitting import PrefixSplitting
from molfun.errors import ConfigError, DataError
from molfun.trunk import TrunkOutput

OF_STRUCTURE = ("aatype", "residue_index", "residx_atom37_to_atom14", "atom37_atom_exists")
"""Features that the structure module and its readers take."""
MASKED = ("true_msa", "bert_mask")
"""Features of a masked alignment that its loss reads."""


class EvoformerPasses(PrefixSplitting, OwnHeads):
    """Mix-in of `molfun.backbones.openfold.OpenFoldBackbone`: its forward pass in parts."""

    model: Any
    config: Any
    settings: dict[str, Any]
    recycles: str
    training: bool
    learns_structure: bool = False
    """True if a head of the model is the predicted structure: its losses then need more outputs."""
    reads_structure: bool = False
    """True if any head reads the predicted structure."""

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the registered heads that are views on modules of this backbone."""
        return ("structure",)

    def serve(self, heads: Sequence[Any]) -> None:
        """Note whether the structure is predicted by a head, and give its task the losses.

        Raises
        ------
        ConfigError
            If the task of that head is another one than ``"structure"``.
        """
        own = [part for part in heads if part.head.in_backbone]
        self.learns_structure = bool(own)
        self.reads_structure = any("structure" in part.head.needs for part in heads)
        for part in own:
            if not hasattr(part.task, "use"):
                raise ConfigError(
                    f"The head 'structure' is trained by the task 'structure', got "
                    f"{part.task.name!r}."
                )
            part.task.use(
                losses.AlphaFoldTerms(
                    self.config.loss,
                    with_tm=bool(self.config.model.heads.tm.enabled),
                    with_masked_msa=bool(self.settings["mask_msa"]),
                )
            )

    # --- the whole -------------------------------------------------------------------------------

    @abstractmethod
    def _run(self, batch: Features) -> dict[str, torch.Tensor]:
        """Run the stock forward on features."""

    @abstractmethod
    def _set_memory(self, batch: int, length: int) -> None:
        """Prepare for inputs of this size."""

    def _drawn(self, batch: Features) -> Features:
        """Return the batch with as many recycling passes as this step has."""
        if self.recycles != "uniform" or not self.training:
            return batch
        # the CPU's own generator, which a resumed run continues
        passes = int(torch.randint(batch["aatype"].shape[-1], ())) + 1
        return {key: value[..., :passes] for key, value in batch.items()}

    def _structure(self, raw: Mapping[str, Any], features: Features) -> dict[str, torch.Tensor]:
        """Return the structure of a forward pass, with what its losses read if it trains."""
        found = folding.structure_of(raw, features, dict(self.config.model.heads.tm))
        return found | (losses.training_outputs(raw, features) if self.learns_structure else {})

    # --- the trunk -------------------------------------------------------------------------------

    def _trunk(self, batch: Features, cycles: int) -> dict[str, torch.Tensor]:
        """Run the stock forward until the structure module of the last pass would start."""
        calls = 0

        def stop(_module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal calls
            calls += 1
            if calls == cycles:
                raise _TrunkDone(args[0])

        return self._stopped(batch, self.model.structure_module.register_forward_pre_hook(stop))

    def _stopped(self, batch: Features, handle: RemovableHandle) -> dict[str, torch.Tensor]:
        """Run the stock forward until the hook behind `handle` ends it; return its outputs."""
        try:
            self._run(batch)
        except _TrunkDone as done:
            return done.outputs
        finally:
            handle.remove()
        raise AssertionError("the forward pass was to stop, and did not")

    # --- the frozen blocks, and the rest ---------------------------------------------------------

    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:
        """Return True for every block, if what trains comes after it in all passes.

        With recycling that is so only where all blocks and the structure module are frozen, and
        the number of passes is fixed.
        """
        if block == 0 or ("structure" in outputs and not self.learns_structure):
            return False
        if self.settings["recycling"] == 0:
            return True
        module = self.model.structure_module
        frozen = not any(p.requires_grad for p in module.parameters())
        whole = block == len(self.model.evoformer.blocks)
        return whole and frozen and self.learns_structure and self.recycles == "fixed"

    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run embedders, templates, extra MSA and the blocks before `block`.

        Returns ``m`` (batch, rows, length, 256), ``z`` (batch, length, length, 128), masks, and
        what the structure module reads if the structure trains.
        """
        passes = batch["aatype"].shape[-1]
        if passes != self.settings["recycling"] + 1:
            raise DataError(
                f"The features were made for {passes - 1} recycling passes, which go through the "
                f"blocks that train, so that these cannot be split off. Make them without, or pass "
                f"backbone_config={{'recycling': {passes - 1}}}."
            )
        mask = batch["seq_mask"][..., -1]
        self._set_memory(*mask.shape)
        calls = 0

        def stop(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == passes:
                raise _TrunkDone({"m": output[0], "z": output[1], "msa_mask": kwargs["msa_mask"]})

        holders = (self.model, self.model.evoformer)
        modes = [module.training for module in holders]
        last = self.model.evoformer.blocks[block - 1]
        handle = last.register_forward_hook(stop, with_kwargs=True)
        try:
            # in training mode openfold takes another path, with other bits: never in place
            for module in holders:
                module.training = False
            state = {**self._stopped(batch, handle), "seq_mask": mask}
        finally:
            for module, mode in zip(holders, modes, strict=True):
                module.training = mode
        kept = (*OF_STRUCTURE, *MASKED) if self.learns_structure else ()
        return {**state, **{name: batch[name][..., -1] for name in kept if name in batch}}

    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Run the blocks from `block` on, and the structure module if it is asked for."""
        mask = state["seq_mask"]
        self._set_memory(*mask.shape)
        # openfold's own stack over a shorter list: the same blocks and no code of theirs copied
        stack = copy.copy(self.model.evoformer)
        stack._modules = {**stack._modules, "blocks": stack.blocks[block:]}
        inplace = not (torch.is_grad_enabled() or self.model.training)
        m, z = state["m"], state["z"]
        m, pair, single = stack(
            m.clone() if inplace else m,
            z.clone() if inplace else z,
            msa_mask=state["msa_mask"],
            pair_mask=mask.unsqueeze(-1) * mask.unsqueeze(-2),
            chunk_size=self.model.globals.chunk_size,
            inplace_safe=inplace,
            _mask_trans=self.config.model._mask_trans,
        )
        structure = None
        if "structure" in outputs:
            raw = self._with_structure({"msa": m, "pair": pair, "single": single}, state, inplace)
            structure = self._structure(raw, state)
        return TrunkOutput(
            single=single,
            pair=pair if "pair" in outputs else None,
            mask=mask,
            structure=structure,
        )

    def _with_structure(
        self, trunk: dict[str, torch.Tensor], state: Features, inplace: bool
    ) -> dict[str, Any]:
        """Run the structure module and the auxiliary heads, as ``AlphaFold.iteration`` ends."""
        from openfold.utils.feats import atom14_to_atom37

        raw: dict[str, Any] = dict(trunk)
        if "bert_mask" in state:
            # rows of templates follow those of the alignment
            raw["msa"] = raw["msa"][..., : state["bert_mask"].shape[-2], :, :]
        raw["sm"] = self.model.structure_module(
            raw,
            state["aatype"],
            mask=state["seq_mask"].to(dtype=raw["single"].dtype),
            inplace_safe=inplace,
        )
        raw["final_atom_positions"] = atom14_to_atom37(raw["sm"]["positions"][-1], state)
        raw["final_atom_mask"] = state["atom37_atom_exists"]
        raw["final_affine_tensor"] = raw["sm"]["frames"][-1]
        raw.update(self.model.aux_heads(raw))
        return raw


class _TrunkDone(Exception):  # noqa: N818  (a signal, not an error)
    """Carry the trunk's outputs out of the stock forward pass."""

    def __init__(self, outputs: dict[str, torch.Tensor]) -> None:
        super().__init__("trunk done")
        self.outputs = outputs
