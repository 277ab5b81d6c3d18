"""Match the named features of time series to those that a model was trained on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Subset

from molfun.data.series.dataset import TimeSeriesDataset
from molfun.errors import DataError
from molfun.models.loaders import input_settings_of

logger = logging.getLogger(__name__)

# columns of an array have no names; `molfun.data.series` calls them feature_0, feature_1, ...
_MADE_UP = re.compile(r"feature_\d+")


def feature_names_of(loader: Any) -> list[str] | None:
    """Return the names of the features behind a loader; None if its data set has no such names."""
    names = input_settings_of(loader).get("feature_columns")
    return None if names is None else [str(name) for name in names]


def with_features(loader: Any, trained: Sequence[str] | None, *, of: str) -> Any:
    """Return the loader with the features of training, chosen by name and in the same order.

    Parameters
    ----------
    loader
        Result of `as_loader`.
    trained
        Names of the features that the model knows; None if it knows none.
    of
        Owner of these names in messages: "the model".

    Raises
    ------
    DataError
        If a feature is missing, or the data has another order and cannot be reordered.
    """
    given = feature_names_of(loader)
    if trained is None or given is None or list(trained) == given:
        return loader
    # made-up names only count the columns, so they cannot show that two columns are the same
    made_up = [_are_made_up(trained), _are_made_up(given)]
    if any(made_up) and len(trained) == len(given):
        if not all(made_up):
            logger.warning(
                "The features have no names to compare: %s are used as the %s of %s.",
                ", ".join(given), ", ".join(trained), of,
            )  # fmt: skip
        return loader
    _refuse_missing(trained, given, of)
    chosen = _choose(loader, list(trained))
    extra = [name for name in given if name not in trained]
    if extra:
        logger.warning("Not used, since %s was trained without them: %s.", of, ", ".join(extra))
    return chosen


def _are_made_up(names: Sequence[str]) -> bool:
    """Return whether the names are those that Molfun gives to features without names."""
    return bool(names) and all(map(_MADE_UP.fullmatch, names))


def _refuse_missing(trained: Sequence[str], given: Sequence[str], of: str) -> None:
    missing = [name for name in trained if name not in given]
    if missing:
        raise DataError(
            f"The data lacks the feature{'s' * (len(missing) > 1)} {', '.join(missing)} that {of} "
            f"was trained on (it has {', '.join(given)}). Add or rename the column."
        )


def _choose(loader: Any, names: list[str]) -> Any:
    dataset = _chosen(getattr(loader, "dataset", None), names)
    if not isinstance(loader, DataLoader) or dataset is None or loader.batch_sampler is None:
        raise DataError(
            f"The features come in another order than in training ({', '.join(names)}). Give "
            f"dataset.with_features({names}) in place of the data set."
        )
    # the batch sampler draws indices, which the new order of columns does not change
    return DataLoader(
        dataset,
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def _chosen(dataset: Any, names: list[str]) -> Any:
    if isinstance(dataset, Subset):
        inside = _chosen(dataset.dataset, names)
        return None if inside is None else Subset(inside, dataset.indices)
    return dataset.with_features(names) if isinstance(dataset, TimeSeriesDataset) else None
