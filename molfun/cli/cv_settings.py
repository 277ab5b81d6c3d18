"""Settings of a cross-validation: those of a run, and its folds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from molfun._paths import as_path
from molfun.cli.head_settings import one_head_per_target
from molfun.cli.settings import FineTuneSettings
from molfun.cli.shared_settings import DATA
from molfun.config import option
from molfun.data.kinds.base import with_kinds
from molfun.data.variant_splits import SCHEMES
from molfun.registry import TASKS

PAIRS = ("c1", "c2", "c3")
"""Splits by which proteins of pairs were trained on."""
_DIVIDED_BY = {
    ("column",): "the folds of a column are as they are",
    PAIRS: "pairs are divided by their proteins",
    tuple(SCHEMES): "variants are divided by their positions",
}
"""Settings that divide samples in one way, and so allow no repeats, by splits."""
_UNUSED = ("old_data", "parallel")
"""Settings of a single run that a cross-validation has no use for."""


class CvSettings(FineTuneSettings):
    """All settings of a cross-validation."""

    folds: int = option(
        5, "Folds; with --split column those of the column.", panel=DATA, ge=2
    )  # fmt: skip
    repeats: int = option(1, "Times that all samples are divided.", panel=DATA, ge=1)
    threshold: float = option(
        0.4, "Identity above which --split identity keeps samples together; to c1, c2 and c3 such "
        "proteins are one.", panel=DATA,
        hidden=True, gt=0, le=1,
    )  # fmt: skip
    stratify: bool | None = option(
        None, "Test the classes in the same shares in each fold.", panel=DATA, hidden=True,
        shown="for tasks of one class per sample", names=("--stratify/--no-stratify",),
    )  # fmt: skip

    @classmethod
    def build(cls, values: Mapping[str, Any], **about: Any) -> CvSettings:
        """Check values, including those of the data kinds, and build settings from them."""
        run = with_kinds(CvSettings)
        each = one_head_per_target(run, values)
        return super(FineTuneSettings, run).build(each, **about).whole()

    @model_validator(mode="after")
    def _takes_its_parts_from_the_data(self) -> Self:
        if self.val or self.test:
            raise ValueError("folds are parts of data: leave out val and test, or use fine-tune")
        if self.is_changed("test_frac"):
            raise ValueError("each fold tests its own part: give folds in place of test_frac")
        if (problem := self._split_problem()) is not None:
            raise ValueError(problem)
        if self.logger:
            raise ValueError("folds are not sent to trackers: leave out logger, or use fine-tune")
        return self

    def _split_problem(self) -> str | None:
        """Say why folds cannot be divided in this way."""
        if self.split == "temporal":
            return "folds have no order in time: split=temporal is for fine-tune"
        if self.split in ("n_mutations", "low_to_high"):
            return f"split={self.split} has one test part: it is for fine-tune"
        own = next((why for splits, why in _DIVIDED_BY.items() if self.split in splits), None)
        if self.stratify and self.split in ("column", *PAIRS):
            return f"{own}: leave out stratify"
        if self.repeats > 1 and own is not None:
            return f"{own}, once: leave out repeats"
        return None

    @model_validator(mode="after")
    def _uses_all_settings(self) -> Self:
        unused = [n for n in _UNUSED if n in type(self).model_fields and self.is_changed(n)]
        if unused:
            raise ValueError(f"a cross-validation does not use {', '.join(unused)}: leave it out")
        return self

    @property
    def stratifies(self) -> bool:
        """True if each fold keeps the shares of the classes, as scikit-learn does it."""
        return has_one_class(self) if self.stratify is None else self.stratify

    @property
    def output_dir(self) -> Path:
        """Folder of the cross-validation; by default ``runs/cv``."""
        return as_path(self.output or "runs/cv")


def has_one_class(settings: FineTuneSettings) -> bool:
    """Return whether each sample has one class, whose shares all folds can have."""
    if settings.split in ("column", *PAIRS) or settings.heads:
        return False
    labels = settings.labels
    return TASKS[labels.task].labels_are == "class" and labels.level in (None, "sequence")
