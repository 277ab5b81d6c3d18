"""Zero-shot scores of variants beside the head: by the base weights, before anything trains."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from molfun.errors import ConfigError, DataError, MolfunError
from molfun.models.assembly import AssembledModel
from molfun.models.loaders import samples_of
from molfun.models.variant_scores import score_variants
from molfun.nn import lora
from molfun.nn.substitutions import SubstitutionScores, SubstitutionTable
from molfun.protein import AMINO_ACIDS
from molfun.sample import Sample, sequence_of
from molfun.text import first_line

logger = logging.getLogger(__name__)


def learn(model: AssembledModel, train: Any, val: Any) -> None:
    """Score the variants of a training set by the base weights, for heads and for baselines.

    Heads with ``augment="zero_shot"`` take the scores, and their mean and deviation over the
    training set, at the first fit. Other models keep them for baselines, where there are any.

    Parameters
    ----------
    model
        Model that is about to be trained.
    train, val
        Loaders of training and validation set; `val` may be None.

    Raises
    ------
    ConfigError
        If a head needs the scores of base weights that are no longer there.
    DataError
        If a head needs scores and there is no wild type, or samples are no variants of it.
    """
    heads = _heads_with_scores(model)
    wild_type = _wild_type_of(train)
    if not heads:
        note_for_baselines(model, train)
        return
    samples, validation = (list(samples_of([] if p is None else [p])) for p in (train, val))
    for scores in heads:
        table = scores.known
        if table is None:
            table = _table_for_head(model, samples, wild_type)
        elif wild_type is not None and wild_type.upper() != table.wild_type:
            raise DataError(
                "The head has the zero-shot scores of another wild type than that of these "
                "variants. Build a new model."
            )
        # all samples that have no score are listed before anything is computed
        every = [*samples, *validation]
        table.scores(list(map(sequence_of, every)), [sample.shown for sample in every])
        if scores.known is None:
            scores.learn(table, list(map(sequence_of, samples)))
        model.base_scores = table


def scores_of(model: AssembledModel) -> SubstitutionTable | None:
    """Return the zero-shot scores of a model's variants: of its last fit, or of its checkpoint."""
    known = [model.base_scores, *(scores.known for scores in _heads_with_scores(model))]
    return next((table for table in known if table is not None), None)


def _heads_with_scores(model: AssembledModel) -> list[SubstitutionScores]:
    found = (getattr(part.head, "scores", None) for part in model.heads)
    return [scores for scores in found if isinstance(scores, SubstitutionScores)]


def _wild_type_of(loader: Any) -> str | None:
    """Return the wild type of the data set below a loader and its subsets."""
    data = loader
    while data is not None:
        found: str | None = getattr(data, "wild_type", None)
        if found is not None:
            return found
        data = getattr(data, "dataset", None)
    return None


def _table_for_head(
    model: AssembledModel, samples: Sequence[Sample], wild_type: str | None
) -> SubstitutionTable:
    """Return the scores of the base weights, or say why there are none."""
    if wild_type is None:
        raise DataError(
            "augment='zero_shot' scores variants of a known wild type: read them with "
            "SequenceDataset.from_variants (--mutant-column and --wild-type)."
        )
    known = scores_of(model)
    if known is not None and known.wild_type == wild_type.upper():
        return known
    if not _is_base(model):
        raise ConfigError(
            "augment='zero_shot' needs the scores of the base weights, and this model was trained "
            "already. Build a new model."
        )
    return _table(model, samples, wild_type)


def note_for_baselines(model: AssembledModel, train: Any) -> None:
    """Keep the scores of variants by the base weights; a model without any trains all the same.

    Parameters
    ----------
    model
        Model that is about to be trained.
    train
        Data set or loader, of variants of a known wild type or anything else.
    """
    known, wild_type = model.base_scores, _wild_type_of(train)
    if wild_type is None or (known is not None and known.wild_type == wild_type.upper()):
        return
    model.base_scores = None
    if not _is_base(model):
        return
    try:
        model.base_scores = _table(model, samples_of([train]), wild_type)
    except MolfunError as error:
        logger.debug("No zero-shot scores for baselines: %s", first_line(error))


def _is_base(model: AssembledModel) -> bool:
    """Return whether the weights are those of the base."""
    if model.strategy is None:
        return True
    if lora.installed_spec(model.backbone) is not None:
        return False
    return model.backbone.base_digests() == model.base_digests


def _table(model: AssembledModel, samples: Iterable[Sample], wild_type: str) -> SubstitutionTable:
    """Return what each exchange adds to ``wt_marginal``, from one pass over the wild type."""
    # with the structure letters of the variants, which are those of the wild type
    like = next(iter(samples), Sample(id=""))
    sample = replace(
        like, id="wild type", sequence=wild_type, features=None, target=None, max_length=None
    )
    found = score_variants(model, sample, [], method="wt_marginal").log_probs
    assert found is not None  # wt_marginal has a table
    codes = [AMINO_ACIDS.find(letter) for letter in wild_type.upper()]
    rows = zip(found, codes, strict=True)
    own = np.array([row[code] if code >= 0 else np.nan for row, code in rows])
    return SubstitutionTable(wild_type.upper(), found - own[:, None])
