"""`TrunkOutput`, the output of a backbone that heads read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from molfun._shapes import Float, Int64
from molfun.errors import ConfigError

Level = Literal["sequence", "residue", "pair"]
"""Unit of one prediction: a whole sample, a residue, or a pair of residues."""
SAMPLE_LEVEL = ("mean", "cls")
"""Representations with one vector per sample."""
REPRESENTATIONS = ("single", "pair", *SAMPLE_LEVEL, "structure", "properties")
"""Names of everything an output may hold, apart from the mask."""
PROPERTY, STRUCTURE = "properties.", "structure."
"""Prefixes of the names of properties, and of what a structure holds, among other tensors."""
ChainCheck = Callable[[str, int], None]
"""Function of the name of a sample and its number of chains that refuses a wrong number."""
LOGITS = "_logits"
"""Ending of the logits in a structure: 64 numbers for each pair, which no cache keeps."""


@dataclass(frozen=True, kw_only=True)
class TrunkOutput:
    """Representations of a batch; those that were not requested are None.

    Parameters
    ----------
    mask
        (batch, length) 1 for residues, 0 for padding.
    single
        (batch, length, c_s) one vector per residue.
    pair
        (batch, length, length, c_z) one vector per residue pair, if the backbone has them.
    mean
        (batch, c_s) mean of `single` over the residues.
    cls
        (batch, c_s) vector of the start token, if the backbone has one.
    structure
        Predicted structure, if requested: ``positions`` (batch, length, 37, 3) in
        angstrom, ``atom_mask``, ``plddt`` (batch, length) in 0-100, ``aatype`` and
        ``residue_index`` (batch, length); of presets with a TM head ``ptm`` (batch,),
        ``pae`` (batch, length, length), the predicted aligned error in angstrom, and
        ``tm_logits`` (batch, length, length, bins). Where the structure is trained, also what the
        losses read.
    properties
        Predictions of the backbone itself by name (energies, forces), if requested: see
        `molfun.backbones.pet.atoms.AtomisticBackbone`.
    chains
        (samples, most chains) for heads that read chains: row of each chain of a sample in the
        other tensors, whose batch is then one of distinct chains; -1 where a sample has fewer.
    score
        (batch,) zero-shot score of each variant, for a head that reads it: `Head.with_samples`.

    Examples
    --------
    >>> out = TrunkOutput(mask=torch.ones(2, 5), single=torch.zeros(2, 5, 3))
    >>> out.need("single").shape
    torch.Size([2, 5, 3])
    """

    mask: Float[torch.Tensor, "batch length"]
    single: Float[torch.Tensor, "batch length c_s"] | None = None
    pair: Float[torch.Tensor, "batch length length c_z"] | None = None
    mean: Float[torch.Tensor, "batch c_s"] | None = None
    cls: Float[torch.Tensor, "batch c_s"] | None = None
    structure: Mapping[str, torch.Tensor] | None = None
    properties: Mapping[str, torch.Tensor] | None = None
    chains: Int64[torch.Tensor, "samples chains"] | None = None
    score: Float[torch.Tensor, "batch"] | None = None

    def need(self, name: str) -> torch.Tensor:
        """Return a representation; ``mean`` is pooled from `single` if the backbone gave none.

        Raises
        ------
        ConfigError
            If it was not computed: the head must list it in ``needs``, and the backbone return it.
        """
        value = getattr(self.with_mean() if name == "mean" else self, name)
        if value is None:
            raise ConfigError(
                f"{name!r} was not computed (there is {', '.join(self.given) or 'nothing'}): list "
                f"it in the head's needs, and let the backbone's forward give it."
            )
        return value

    def with_mean(self) -> TrunkOutput:
        """Return the same output with ``mean``, computed from `single` if needed and possible."""
        if self.mean is not None or self.single is None:
            return self
        return replace(self, mean=masked_mean(self.single, self.mask))

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the representations that are not None."""
        return tuple(name for name in REPRESENTATIONS if getattr(self, name) is not None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the mask and the given representations by name; of a structure all but logits."""
        structure = (self.structure or {}).items()
        kept = {f"{STRUCTURE}{n}": t for n, t in structure if not n.endswith(LOGITS)}
        return {**self._without_structure(), **kept}

    def _without_structure(self) -> dict[str, torch.Tensor]:
        names = ("mask", "single", "pair", *SAMPLE_LEVEL)
        own = {f"{PROPERTY}{n}": t for n, t in (self.properties or {}).items()}
        return {**{n: t for n in names if (t := getattr(self, n)) is not None}, **own}

    def select(self, names: Sequence[str]) -> TrunkOutput:
        """Return an output with the mask and the named representations; pool ``mean`` if needed."""
        pooled = self.with_mean() if "mean" in names else self
        absent: dict[str, Any] = {n: None for n in REPRESENTATIONS if n not in names}
        return replace(pooled, **absent)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> TrunkOutput:
        """Return an output from the result of `tensors`."""
        prefixes = (PROPERTY, STRUCTURE)
        fields: dict[str, Any] = {n: t for n, t in tensors.items() if not n.startswith(prefixes)}
        properties, structure = (
            {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in prefixes
        )
        return cls(**fields, properties=properties or None, structure=structure or None)

    @classmethod
    def stack(cls, outputs: Sequence[TrunkOutput]) -> TrunkOutput:
        """Join outputs of single samples into one padded batch.

        Examples
        --------
        >>> parts = [
        ...     TrunkOutput(
        ...         mask=torch.ones(1, n),
        ...         properties={"forces": torch.ones(1, n, 3), "virial": torch.ones(1, 3, 3)},
        ...     )
        ...     for n in (3, 5)
        ... ]
        >>> {name: tuple(t.shape) for name, t in TrunkOutput.stack(parts).properties.items()}
        {'forces': (2, 5, 3), 'virial': (2, 3, 3)}
        """
        if len(outputs) == 1:
            return outputs[0]
        parts = [out._without_structure() for out in outputs]
        structures = [out.structure for out in outputs if out.structure is not None]
        # only a structure for every sample can be one batch
        complete = len(structures) == len(outputs)
        return replace(
            cls.from_tensors(padded_batches(parts)),
            structure=padded_batches(structures) if complete else None,
        )


def masked_mean(
    x: Float[torch.Tensor, "batch length channels"], mask: Float[torch.Tensor, "batch length"]
) -> Float[torch.Tensor, "batch channels"]:
    """Return the mean over the residues where the mask is 1; zero if there are none."""
    # the clamp: a sample without residues would otherwise give NaN, and NaN in every gradient
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def padded_batches(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join batches by `padded_cat`, for the names that all of them have."""
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: padded_cat([part[name] for part in parts]) for name in shared}


def padded_cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate along the first dimension, with the others padded with zeros to the longest.

    Examples
    --------
    >>> padded_cat([torch.ones(1, 1), torch.ones(1, 2)])
    tensor([[1., 0.],
            [1., 1.]])
    """
    sizes = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].ndim)]
    # equal shapes need no padding, and cat is one copy
    if all(list(t.shape[1:]) == sizes for t in tensors):
        return torch.cat(list(tensors))
    joined = tensors[0].new_zeros((sum(len(t) for t in tensors), *sizes))
    start = 0
    for tensor in tensors:
        joined[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        start += len(tensor)
    return joined
