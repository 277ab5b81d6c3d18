"""The AlphaFold trunk of the openfold package behind the `Backbone` interface.

The stock ``openfold.model.model.AlphaFold`` does all the work. This module chooses what runs (the
trunk only, or also the structure module) and the memory settings, and maps parameters to layers.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from molfun.backbones.base import Backbone, Features, Layer
from molfun.backbones.folding import Fold, Folding
from molfun.backbones.kernels import KernelChoice, Kernels, check_kernels
from molfun.backbones.openfold import (
    _shims,
    fast,
    features,
    folding,
    kernel_choice,
    memory,
    passes,
    precomputed,
    presets,
)
from molfun.backbones.openfold.initialisation import build_model
from molfun.backbones.openfold.memory import EvoformerCosts
from molfun.backbones.openfold.passes import EvoformerPasses
from molfun.backbones.openfold.weights import load_weights
from molfun.backbones.planning import MemoryPlan
from molfun.backbones.splitting import frozen_blocks
from molfun.errors import DataError
from molfun.nn.allocator import keep_large_buffers, return_large_buffers
from molfun.sample import Sample
from molfun.strict import check_choice
from molfun.trunk import TrunkOutput

Recycles = Literal["fixed", "uniform"]
CHECKPOINT_ABOVE = 64
"""Length of one sample above which blocks are recomputed, unless `plan_memory` has decided."""
CHUNK_ABOVE = 384
"""Length above which inference runs the pair stack in chunks of 4 rows, which bounds memory."""
EXTRA_BLOCKS = 4
"""Blocks of the extra-MSA stack; they keep a graph if parameters before the trunk train."""


class OpenFoldBackbone(EvoformerPasses, Backbone, KernelChoice, Folding, EvoformerCosts):
    """OpenFold (AlphaFold 2) as published in the ``openfold`` package, 1.x or 2.x.

    Parameters
    ----------
    config
        Preset name (``"model_1_ptm"``, the default, ... or ``"tiny"``, the real classes with 2
        blocks, for tests), or an ``ml_collections.ConfigDict`` from ``openfold.config``.
    weights
        File of weights, see `molfun.backbones.openfold.weights.load_weights`; None gives a random
        initialisation.
    seed
        Seed of the random initialisation.
    recycling
        Recycling passes through the whole model before the last one. 0 by default: each costs as
        much as the forward pass itself. None takes the config's number.
    recycles
        ``"fixed"``: always `recycling` passes. ``"uniform"``: in training a number from 0 to
        `recycling`, drawn for each batch, as AlphaFold was trained.
    max_msa_clusters, max_extra_msa
        Largest numbers of MSA rows; None keeps the config's. Cost grows linearly with them.
    mask_msa
        Whether to mask 15 % of the MSA, as AlphaFold does in training and prediction. What is
        masked follows from the content of a sample and is the same in every epoch, so that caches
        hold; AlphaFold draws a new mask each time. By default no part of the alignment is masked.
    checkpointing
        Whether to recompute activations of each block in the backward pass instead of keeping them:
        a tenth of the memory for a third more time, and the same numbers. None decides by the
        memory that is free before training (`plan_memory`).
    fill_zero_init
        Standard deviation of the weights that AlphaFold starts at zero (the last layer of every
        residual branch). None is 0 with `weights`, and `initialisation.RANDOM_FILL` without.

    References
    ----------
    Jumper et al. 2021, supplement, algorithm 2; Ahdritz et al. 2024 (OpenFold).

    Examples
    --------
    >>> from molfun.backbones.openfold import OpenFoldBackbone
    >>> backbone = OpenFoldBackbone(config="tiny")
    >>> backbone.single_dim, len(backbone.blocks())
    (32, 2)
    """

    name = "openfold"
    display_name = "OpenFold"
    weights_licence = "CC BY 4.0 (OpenFold, Ahdritz et al. 2024; AlphaFold, Jumper et al. 2021)"
    block_prefix = "model.evoformer.blocks"
    lora_targets = ("linear_q", "linear_v")
    lora_structure = (
        "model.structure_module.ipa.linear_q",
        "model.structure_module.ipa.linear_kv",
    )
    inputs = ("structures",)
    default_head = "affinity"
    length_power = 3.0
    has_int8 = True
    featurizes_in_workers = True  # tens of milliseconds per structure, seconds with alignments

    def __init__(
        self,
        config: Any = None,
        *,
        weights: str | Path | None = None,
        seed: int = 0,
        recycling: int | None = 0,
        recycles: Recycles = "fixed",
        max_msa_clusters: int | None = None,
        max_extra_msa: int | None = None,
        mask_msa: bool = False,
        checkpointing: bool | None = None,
        fill_zero_init: float | None = None,
    ) -> None:
        _shims.prepare()
        super().__init__()
        self.preset, self.config = presets.resolve_config(config)
        features.check_counts(recycling, max_msa_clusters, max_extra_msa)
        check_choice("recycles", recycles, get_args(Recycles))
        self.recycles = recycles
        self.config.globals.chunk_size = None
        # saved now: the model writes its chunk size into the same config
        self._custom = json.loads(self.config.to_json()) if self.preset == "custom" else None
        if recycling is None:
            recycling = int(self.config.data.common.max_recycling_iters)
        self.settings: dict[str, Any] = {
            "recycling": recycling,
            "max_msa_clusters": max_msa_clusters,
            "max_extra_msa": max_extra_msa,
            "mask_msa": mask_msa,
        }
        self.checkpointing = checkpointing
        self._planned: memory.Plan | None = None
        self._kept = 0
        self._precision = "32-true"
        self.data_config = features.data_config(self.config.data, **self.settings)
        self._schema = features.Schema(self.config.data)
        self.model: Any = build_model(
            self.config, seed=seed, draw=weights is None, fill=fill_zero_init
        )
        # not of norms: torch runs them in float32 whatever the precision
        self._limits = [
            (module, getattr(module, "inf", None), getattr(module, "eps", None))
            for module in self.model.modules()
            if "Norm" not in type(module).__name__
        ]
        if weights is not None:
            version = presets.jax_version(self.preset, self.config)
            load_weights(self.model, weights, jax_version=version)
        self.single_dim = int(self.config.globals.c_s)
        self.pair_dim = int(self.config.globals.c_z)
        self._tm = dict(self.config.model.heads.tm)
        self._inputs = tuple(key for key in features.MODEL_INPUTS if self._reads(key))

    def _reads(self, key: str) -> bool:
        if key.startswith("template_"):
            return bool(self.config.model.template.enabled)
        if key.startswith("extra_"):
            return bool(self.config.model.extra_msa.enabled)
        return True

    # --- input ---------------------------------------------------------------------------------

    def featurize(self, sample: Sample) -> Features:
        """Turn one sample into openfold's tensors, the recycling dimension last.

        Raises
        ------
        DataError
            If alignments or pre-computed features do not fit the sample.
        """
        if sample.features is not None and features.is_processed(sample.features):
            ready = precomputed.check_processed(sample.features, sample.shown, self._inputs)
            return self._schema.crop(ready, sample.max_length)
        # caches are keyed by content, so the seed depends on nothing else: no order, name or worker
        seed = int(sample.content_key()[:8], 16)
        return features.process(self._raw_features(sample), self.data_config, seed=seed)

    def check(self, sample: Sample) -> None:
        """Refuse what `featurize` cannot take: length, alignments, keys of features.

        Raises
        ------
        DataError
            If there is such a problem; the text names the sample.
        """
        if sample.features is not None and features.is_processed(sample.features):
            precomputed.check_processed(sample.features, sample.shown, self._inputs)
        elif sample.features is not None or sample.alignment_dir is not None:
            self._raw_features(sample)
        elif sample.protein is not None:
            features.check_length(len(sample.protein), sample.id)

    def _raw_features(self, sample: Sample) -> dict[str, Any]:
        if sample.protein is None and sample.features is None:
            only = ", but a sequence alone: give protein=Protein.from_sequence(...)"
            only = "" if sample.sequence is None else only
            raise DataError(f"{sample.id} has neither a structure nor features{only}.")
        if sample.features is None and sample.protein is not None:
            features.check_length(len(sample.protein), sample.id)
            return features.raw_from_protein(sample.protein, sample.alignment_dir)
        whole = precomputed.check_raw(sample.features or {}, sample.shown)
        features.check_length(features.raw_length(whole), sample.shown)
        return features.crop_raw(whole, sample.max_length)

    def collate(self, features: Sequence[Features]) -> Features:
        """Pad and stack the features that the model reads, and labels, which openfold ignores."""
        return self._schema.collate(features, self._read_of(features))

    def _read_of(self, made: Sequence[Features]) -> tuple[str, ...]:
        """Return the names of the features that the model and its losses read."""
        masked = passes.MASKED if self.learns_structure and self.settings["mask_msa"] else ()
        return (*self._inputs, *(key for key in masked if all(key in one for one in made)))

    def featurize_key(self) -> str:
        """Return the version of openfold and the settings of its feature pipeline as text."""
        version = importlib.metadata.version("openfold")
        return json.dumps([self.name, version, self.settings, self.config.data.to_json()])

    # --- forward -------------------------------------------------------------------------------

    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        """Run the trunk, and the structure module only if ``"structure"`` is asked for.

        Parameters
        ----------
        batch
            Result of `collate`.
        outputs
            Names among ``single``, ``pair``, ``structure``.

        Returns
        -------
        TrunkOutput
            ``single`` (batch, length, 384) and the others asked for.
        """
        batch = self._drawn(batch)
        last = {key: value[..., -1] for key, value in batch.items()}
        mask = last["seq_mask"]
        self._set_memory(*mask.shape)
        wanted = "structure" in outputs
        raw = self._run(batch) if wanted else self._trunk(batch, batch["aatype"].shape[-1])
        return TrunkOutput(
            single=raw["single"],
            pair=raw["pair"] if "pair" in outputs else None,
            mask=mask,
            structure=self._structure(raw, last) if wanted else None,
        )

    def _run(self, batch: Features) -> dict[str, torch.Tensor]:
        """Run the stock forward on features alone: it slices every tensor it is given."""
        outputs: dict[str, torch.Tensor] = self.model(
            {key: batch[key] for key in self._inputs if key in batch}
        )
        return outputs

    def fold(self, sample: Sample, *, recycles: int, tolerance: float | None, seed: int) -> Fold:
        """Predict a structure; features that were made for other recycling passes keep theirs."""
        made = self._features_for(sample, recycles, seed)
        protein = sample.protein or folding.residues_of(made)
        device = next(self.parameters()).device
        batch = {k: v.to(device) for k, v in self._schema.collate([made], self._inputs).items()}
        self._set_memory(1, len(protein))
        outputs, n_passes = folding.run_passes(self.model, batch, tolerance)
        return folding.of_structure(
            folding.structure_of(outputs, {k: v[..., -1] for k, v in batch.items()}, self._tm),
            protein,
            self._tm,
            recycles=n_passes,
            alignment_rows=int(made["msa_mask"][..., 0].any(-1).sum()),
        )

    def fold_of(self, structure: Mapping[str, torch.Tensor], row: int, sample: Sample) -> Fold:
        """Return one structure of a batch; see `Folding.fold_of`."""
        alone = sample.features is None and sample.alignment_dir is None
        rows = structure.get("alignment_rows")
        return folding.of_structure(
            structure,
            sample.protein or folding.residues_of(self.featurize(sample)),
            self._tm,
            recycles=self._passes_of(sample) - 1,
            alignment_rows=(1 if alone else 2) if rows is None else int(rows[row]),
            row=row,
        )

    def _passes_of(self, sample: Sample) -> int:
        """Return the passes of a sample: processed features were made for so many."""
        if sample.features is not None and features.is_processed(sample.features):
            return int(sample.features["aatype"].shape[-1])
        return int(self.settings["recycling"]) + 1

    def _features_for(self, sample: Sample, recycles: int, seed: int) -> Features:
        """Return the features of a sample for so many recycling passes."""
        if sample.features is not None and features.is_processed(sample.features):
            return self.featurize(sample)
        settings = {**self.settings, "recycling": recycles}
        config = features.data_config(self.config.data, **settings)
        return features.process(self._raw_features(sample), config, seed=seed)

    def plan_memory(self, longest: Sample, batch_size: int, available: int) -> MemoryPlan:
        """Keep the activations of as many blocks as fit, else those between blocks, else fewer.

        The choice affects memory and time, not the numbers. An argument `checkpointing` of the
        constructor overrides it.
        """
        shape = self._shape_of_step(longest, batch_size)
        fast_runs = self.kernels == "fast" and self._precision == "32-true"
        if self.checkpointing is None:
            choice = memory.choose(shape, available, fast=fast_runs)
            self._planned, self._kept = choice.plan, choice.kept
        else:
            plan = self._plan_for(shape.batch, shape.length)
            choice = memory.Choice(plan, memory.peak_bytes(shape, plan, fast=fast_runs))
        if choice.plan in ("compact", "lean"):
            return_large_buffers()
        if choice.peak <= available:
            return MemoryPlan(choice.peak, str(choice))
        fits = memory.longest_that_fits(shape, available, fast=fast_runs)
        return MemoryPlan(choice.peak, str(choice), fits)

    def _shape_of_step(self, longest: Sample, batch_size: int) -> memory.Shape:
        """Return the sizes that decide the memory of a step, and the blocks that keep a graph."""
        trains = {self.layer_of(n).kind for n, p in self.named_parameters() if p.requires_grad}
        early = bool(trains & {"embedder", "early"})
        return memory.shape_of(
            self.config,
            batch=batch_size,
            length=self._length_of(longest),
            msa_rows=self.featurize(longest)["msa_feat"].shape[0],
            blocks=len(self.blocks()) - frozen_blocks(self) + (EXTRA_BLOCKS if early else 0),
            structure=self.reads_structure,
        )

    def _plan_for(self, batch: int, length: int) -> memory.Plan:
        """Return the plan the constructor asks for, else the planned one, else one by size."""
        if self.checkpointing is None and self._planned is not None:
            return self._planned
        wanted = self.checkpointing
        if wanted is None:
            wanted = batch * length**2 > CHECKPOINT_ABOVE**2
        return "checkpoint" if wanted else "keep"

    def forget_plan(self) -> None:
        """Decide by the size of each batch again, and let the process keep freed buffers."""
        self._planned, self._kept = None, 0
        if next(self.parameters()).device.type == "cpu":
            keep_large_buffers()

    def _set_memory(self, batch: int, length: int) -> None:
        """Checkpoint blocks if a large graph is kept, and chunk long inputs if none is."""
        keeps_graph = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        plan = self._plan_for(batch, length)
        memory.checkpoint_blocks(self.model, keeps_graph and plan != "keep", kept=self._kept)
        fast.set_lean(self.model, keeps_graph and plan == "lean")
        # the fast kernels divide long inputs themselves
        whole = keeps_graph or length <= CHUNK_ABOVE or self.kernels == "fast"
        self.model.globals.chunk_size = None if whole else 4

    def set_kernels(self, kernels: Kernels) -> None:
        """Switch to openfold's own code, or to `molfun.backbones.openfold.fast` after testing it.

        ``"auto"`` is ``"fast"`` unless the environment variable ``MOLFUN_KERNELS`` is ``stock`` or
        the test fails, which is logged.

        Raises
        ------
        ConfigError
            If the name is unknown, or ``"fast"`` gives other numbers here.
        """
        check_kernels(kernels)
        self.kernels = "stock"
        self.kernels = kernel_choice.install_tested(self.model, kernels)

    def set_precision(self, precision: str) -> None:
        """Limit mask biases and epsilons to float16, where 1e9 is infinite and 1e-8 is zero.

        The limits are those of openfold's ``low_prec`` presets. Without them a row whose keys are
        all masked (an empty MSA or template) would become NaN. Any other precision restores
        openfold's own values.
        """
        self._precision = precision
        half = precision == "16-mixed"
        for module, infinity, epsilon in self._limits:
            if infinity is not None:
                module.inf = min(infinity, 1e4) if half else infinity
            if epsilon is not None:
                module.eps = max(epsilon, 1e-4) if half else epsilon

    # --- parts ---------------------------------------------------------------------------------

    @property
    def why_whole(self) -> str:
        """Another number of passes in each process, if it is drawn."""
        drawn = self.recycles == "uniform"
        return "each process would draw another number of recycling passes" if drawn else ""

    def blocks(self) -> Sequence[nn.Module]:
        """Evoformer blocks, first to last."""
        return list(self.model.evoformer.blocks)

    def layer_of(self, parameter: str) -> Layer:
        """Find the layer of a parameter; template, extra-MSA and recycling parts precede block 0.

        Examples
        --------
        >>> backbone = OpenFoldBackbone(config="tiny")
        >>> backbone.layer_of("model.recycling_embedder.linear.weight")
        Layer(kind='early', index=0)
        """
        parts = parameter.removeprefix("model.").split(".")
        if parts[:2] == ["evoformer", "blocks"]:
            return Layer("block", int(parts[2]))
        if parts[0] == "evoformer":  # the projection of the last MSA row to `single`
            return Layer("block", len(self.model.evoformer.blocks) - 1)
        if parts[0] == "input_embedder":
            return Layer("embedder")
        if parts[0] == "structure_module":
            return Layer("structure_module")
        if parts[0] == "aux_heads":
            # where the structure is the head of the model, these are its own heads
            return Layer("head" if self.learns_structure else "output")
        return Layer("early")

    @property
    def config_dict(self) -> dict[str, Any]:
        """Preset name (or the whole config) and feature settings, as plain values."""
        # left out where it is the default: fingerprints of older checkpoints stay as they are
        drawn = {} if self.recycles == "fixed" else {"recycles": self.recycles}
        return {"preset": self.preset, "custom": self._custom, **self.settings, **drawn}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Turn `config_dict` back into constructor arguments."""
        arguments = dict(config)
        preset, custom = arguments.pop("preset"), arguments.pop("custom")
        if custom is None:
            return {**arguments, "config": preset}
        import ml_collections

        return {**arguments, "config": ml_collections.ConfigDict(custom)}
