"""Score variants of a protein by a language model that was never shown a label."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from molfun._shapes import Float64
from molfun.data.variants import Variant, all_substitutions, parse_variants
from molfun.errors import ConfigError, DataError
from molfun.models.assembly import AssembledModel
from molfun.models.build import needs_token_head
from molfun.models.precision import InferencePrecision, computing
from molfun.nn.modes import evaluating
from molfun.protein import AMINO_ACIDS
from molfun.sample import Sample, in_batches
from molfun.strict import check_choice

Method = Literal["masked_marginal", "wt_marginal", "mutant_marginal", "pseudo_perplexity"]
BATCH_TOKENS = 4096
"""Tokens per pass."""


@dataclass(frozen=True)
class VariantScores:
    """Scores of variants: higher ones are likelier proteins.

    Parameters
    ----------
    wild_type
        Sequence of the wild type.
    method
        Method that gave the scores.
    offset
        Number of the first residue minus 1.
    variants
        The variants.
    scores
        Score of each; 0 for the wild type.
    log_probs
        (residues, 20) natural logarithms of the probabilities of the amino acids at each residue of
        the wild type, in the order of `AMINO_ACIDS`; None for methods that have no such table.
    """

    wild_type: str
    method: Method
    offset: int
    variants: Sequence[Variant]
    scores: Float64[np.ndarray, "variants"]
    log_probs: Float64[np.ndarray, "residues 20"] | None

    def to_pandas(self) -> Any:
        """Return a table with the columns ``variant``, ``n_mutations`` and ``score``."""
        import pandas as pd

        return pd.DataFrame(
            {
                "variant": [variant.name(offset=self.offset) for variant in self.variants],
                "n_mutations": [len(variant.changes) for variant in self.variants],
                "score": self.scores,
            }
        )

    def matrix(self) -> Float64[np.ndarray, "residues 20"]:
        """Return the scores of single substitutions, see `substitution_matrix`."""
        return substitution_matrix(self.wild_type, self.variants, self.scores)

    def entropy(self) -> Float64[np.ndarray, "residues"]:
        """Return the entropy of the amino acids at each residue in nats: 0 fixed, 3.0 free.

        Raises
        ------
        ConfigError
            If the method gave no probabilities of the wild type's residues.
        """
        if self.log_probs is None:
            raise ConfigError(
                f"method={self.method!r} gives no probabilities per residue. Use "
                f"masked_marginal or wt_marginal."
            )
        shares = np.exp(self.log_probs)
        shares /= shares.sum(1, keepdims=True)
        return -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)


def substitution_matrix(
    wild_type: str, variants: Sequence[Variant], values: Sequence[float] | np.ndarray
) -> Float64[np.ndarray, "residues 20"]:
    """Return the values of single substitutions: NaN without one, 0 at the wild type.

    Amino acids have the order of `AMINO_ACIDS`.

    Examples
    --------
    >>> substitution_matrix("AC", [], [])[0, :2]
    array([ 0., nan])
    """
    found = np.full((len(wild_type), len(AMINO_ACIDS)), np.nan)
    for place, letter in enumerate(wild_type.upper()):
        if letter in AMINO_ACIDS:
            found[place, AMINO_ACIDS.index(letter)] = 0.0
    for variant, value in zip(variants, values, strict=True):
        if len(variant.changes) == 1:
            (change,) = variant.changes
            found[change.place, AMINO_ACIDS.index(change.new)] = value
    return found


def score_variants(
    model: AssembledModel,
    wild_type: str | Sample,
    variants: str | Iterable[str] = "all",
    *,
    method: Method = "masked_marginal",
    offset: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    precision: InferencePrecision | None = None,
) -> VariantScores:
    r"""Score variants of a protein by how likely a language model finds their residues.

    With :math:`p(a_i | x)` the probability of amino acid :math:`a` at residue :math:`i` of the
    sequence :math:`x`, the wild type :math:`w`, the variant :math:`m` and its exchanged residues
    :math:`M`:

    * ``masked_marginal``: :math:`\sum_{i \in M} \log p(m_i | w_{-i}) - \log p(w_i | w_{-i})`, each
      residue hidden by itself, as in the scripts of ESM, in ProteinGym and in biotrainer;
    * ``wt_marginal``: the same with the wild type as it is, in one pass;
    * ``mutant_marginal``: :math:`\sum_{i \in M} \log p(m_i | m) - \log p(w_i | m)`, one pass per
      variant;
    * ``pseudo_perplexity``: :math:`\sum_i \log p(m_i | m_{-i}) - \sum_i \log p(w_i | w_{-i})` over
      all residues, as in biotrainer: a difference of log likelihoods, which is higher for likelier
      variants. It takes a pass per residue of each variant.

    Parameters
    ----------
    model
        Model with a language model as its backbone.
    wild_type
        Sequence, or a sample with a sequence and structure letters, or with a structure.
    variants
        ``"all"`` single substitutions, or names: see `molfun.data.variants.parse_variant`.
    method
        What is compared.
    offset
        Number of the first residue in the names minus 1.
    batch_tokens
        Tokens per pass; lower it when memory runs out.
    precision
        ``"fp32"``, ``"bf16"`` or ``"auto"`` (bfloat16 where the device has units for it); None is
        the precision that the model was trained in.

    Returns
    -------
    VariantScores
        In the order of `variants`.

    Raises
    ------
    ConfigError
        If the backbone is no language model that predicts residues.
    DataError
        If the wild type or variants cannot be read; all of the latter are listed.

    References
    ----------
    Meier et al. 2021, "Language models enable zero-shot prediction of the effects of mutations on
    protein function", NeurIPS 34, appendix A; Salazar et al. 2020 (pseudo log likelihood).

    Examples
    --------
    >>> from molfun import MolfunStructureModel
    >>> model = MolfunStructureModel("esm2_tiny", device="cpu")
    >>> found = score_variants(model, "MKVLAA", ["K2E", "p.Val3Gly;Lys2Glu"])
    >>> found.to_pandas()["variant"].tolist()
    ['K2E', 'K2E:V3G']
    """
    check_choice("method", method, get_args(Method))
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be at least 1, got {batch_tokens}.")
    needs_token_head(model.backbone)
    protein = _Protein.of(model, wild_type)
    wanted = _wanted(variants, protein.sequence, offset)
    passes = _Passes(model, batch_tokens)
    windows = _Windows(model.backbone, protein.sample)
    windows.check(wanted, offset, model.backbone.display_name)
    with computing(model, precision), torch.inference_mode(), evaluating(model.backbone):
        if method in ("masked_marginal", "wt_marginal"):
            table = _table(passes, protein, windows, wanted, masked=method == "masked_marginal")
            scores = [_marginal(table, variant) for variant in wanted]
        elif method == "mutant_marginal":
            table, scores = None, list(_mutant_marginals(passes, protein, wanted))
        else:
            table, scores = None, list(_pseudo_likelihoods(passes, protein, wanted))
    return VariantScores(protein.sequence, method, offset, wanted, np.array(scores), table)


def _wanted(variants: str | Iterable[str], wild_type: str, offset: int) -> list[Variant]:
    if isinstance(variants, str):
        if variants != "all":
            raise ConfigError(f"variants must be 'all' or a list of names, got {variants!r}.")
        return list(all_substitutions(wild_type))
    return parse_variants(variants, wild_type, offset=offset)


@dataclass(frozen=True)
class _Protein:
    """The wild type, with the sample that the backbone reads."""

    sample: Sample
    sequence: str

    @classmethod
    def of(cls, model: AssembledModel, given: str | Sample) -> _Protein:
        sample = given if isinstance(given, Sample) else Sample(id="wild type", sequence=given)
        backbone: Any = model.backbone
        backbone.check(sample)
        # it says how the structure is read
        backbone.problems([sample])
        sequence = backbone.sequence_of(sample).upper()
        if "<" in sequence:
            raise DataError(f"{sample.id} has hidden residues (<mask>); give all of them.")
        return cls(sample, sequence)

    def with_residues(self, variant: Variant) -> Sample:
        """Return the sample of a variant, with the structure of the wild type."""
        letters = self.sample.structure_letters
        return Sample(
            id=variant.name(),
            sequence=variant.apply(self.sequence),
            structure_letters=letters,
            protein=self.sample.protein,
        )


class _Windows:
    """Tokens of a sample in windows, and the place of each residue in its window.

    A sequence that is not divided has one window.
    """

    def __init__(self, backbone: Any, sample: Sample) -> None:
        features = backbone.featurize(sample)
        lengths = features["windows"]
        self.tokens = features["tokens"].split(lengths.tolist())
        ends = lengths.cumsum(0)
        self.window = torch.searchsorted(ends, features["residues"], right=True)
        self.place = features["residues"] - (ends - lengths)[self.window]

    def check(self, variants: Iterable[Variant], offset: int, name: str) -> None:
        """Refuse variants of residues that were cut off."""
        n = len(self.place)
        for variant in variants:
            if any(change.place >= n for change in variant.changes):
                raise DataError(
                    f"{variant.name(offset=offset)}: {name} sees the first {n} residues alone. Use "
                    f"long='full' or long='window'."
                )

    def plain(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each window with the places of its residues."""
        for i, tokens in enumerate(self.tokens):
            yield tokens, self.place[self.window == i]

    def masked(self, hide: Any, residues: Iterable[int]) -> Iterator[tuple[torch.Tensor, Any]]:
        """Yield the window of each residue with that residue hidden."""
        for residue in residues:
            place = self.place[residue : residue + 1]
            tokens = self.tokens[int(self.window[residue])].clone()
            tokens[place] = hide(tokens[place])
            yield tokens, place


class _Passes:
    """Runs the language model over packed windows, a bounded number of tokens at a time."""

    def __init__(self, model: AssembledModel, batch_tokens: int) -> None:
        self.backbone: Any = model.backbone
        self._device, self._limit = model.device, batch_tokens

    def log_probs(self, items: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[np.ndarray]:
        """Yield (places, 20) for each pair of a window and places in it."""
        for batch in in_batches(items, lambda item: len(item[0]), self._limit):
            lengths = torch.tensor([len(tokens) for tokens, _ in batch])
            starts = lengths.cumsum(0) - lengths
            tokens = torch.cat([tokens for tokens, _ in batch]).to(self._device)
            places = [place + start for (_, place), start in zip(batch, starts, strict=True)]
            logits = self.backbone.token_logits(
                {"tokens": tokens, "windows": lengths}, torch.cat(places).to(self._device)
            )
            found = self.backbone.amino_acid_log_probs(logits).double().cpu()
            yield from (part.numpy() for part in found.split([len(place) for place in places]))


def _table(
    passes: _Passes,
    protein: _Protein,
    windows: _Windows,
    wanted: Sequence[Variant],
    *,
    masked: bool,
) -> np.ndarray:
    """Return log probabilities at the residues of the wild type, NaN where none is exchanged."""
    table = np.full((len(protein.sequence), len(AMINO_ACIDS)), np.nan)
    if masked:
        needed = sorted({change.place for variant in wanted for change in variant.changes})
        rows = passes.log_probs(windows.masked(passes.backbone.hidden, needed))
        for place, row in zip(needed, rows, strict=True):
            table[place] = row[0]
    else:
        rows = passes.log_probs(windows.plain())
        for i, row in enumerate(rows):
            table[np.flatnonzero(windows.window.numpy() == i)] = row
    return table


def _marginal(table: np.ndarray, variant: Variant) -> float:
    return sum(
        table[change.place, AMINO_ACIDS.index(change.new)]
        - table[change.place, AMINO_ACIDS.index(change.old)]
        for change in variant.changes
    )


def _mutant_marginals(
    passes: _Passes, protein: _Protein, wanted: Sequence[Variant]
) -> Iterator[float]:
    def items() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for variant in wanted:
            windows = _Windows(passes.backbone, protein.with_residues(variant))
            places = [change.place for change in variant.changes]
            # changes come by their places, and so do windows
            for window in dict.fromkeys(windows.window[places].tolist()):
                group = [i for i in places if int(windows.window[i]) == window]
                yield windows.tokens[window], windows.place[group]

    rows = itertools.chain.from_iterable(passes.log_probs(items()))
    for variant in wanted:
        score = 0.0
        for change, row in zip(variant.changes, rows, strict=False):  # no row more than it needs
            score += row[AMINO_ACIDS.index(change.new)] - row[AMINO_ACIDS.index(change.old)]
        yield score


def _pseudo_likelihoods(
    passes: _Passes, protein: _Protein, wanted: Sequence[Variant]
) -> Iterator[float]:
    """Yield the pseudo log likelihood of each variant, less that of the wild type."""
    changed = [protein.with_residues(variant) for variant in wanted if variant.changes]

    def items() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for sample in (protein.sample, *changed):
            windows = _Windows(passes.backbone, sample)
            yield from windows.masked(passes.backbone.hidden, range(len(windows.place)))

    rows = passes.log_probs(items())
    n = len(_Windows(passes.backbone, protein.sample).place)

    def likelihood(sequence: str) -> float:
        # a letter that is no amino acid has no probability; the wild type has it as well
        found = [next(rows)[0, AMINO_ACIDS.find(letter)] for letter in sequence[:n]]
        known = [letter in AMINO_ACIDS for letter in sequence[:n]]
        return float(np.sum(found, where=known))

    reference = likelihood(protein.sequence)
    for variant in wanted:
        yield likelihood(variant.apply(protein.sequence)) - reference if variant.changes else 0.0
