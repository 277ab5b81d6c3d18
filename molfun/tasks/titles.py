"""Names of metrics and losses for people, in tables and sentences."""

from __future__ import annotations

TITLES = {
    "rmse": "RMSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman", "r2": "R²",
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1": "F1", "mcc": "MCC",
    "precision_at_n": "precision of the n most probable pairs", "f1_micro": "F1 over all labels",
    "auroc": "AUROC", "auprc": "AUPRC", "q3": "Q3", "energy_mae": "energy MAE (meV/atom)",
    "energy_rmse": "energy RMSE (meV/atom)", "forces_mae": "forces MAE (meV/Å)",
    "forces_rmse": "forces RMSE (meV/Å)", "train_loss": "training loss",
    "val_loss": "validation loss", "mse": "mean squared error (standardised units)",
    "lddt_ca": "lDDT-CA", "tm_score": "TM-score", "gdt_ts": "GDT-TS", "rmsd": "RMSD (Å)",
    "fape": "FAPE (10 Å)", "cosine": "cosine to the teacher",
    "target_std": "deviation of the teacher (0: collapsed)",
}  # fmt: skip
"""Those that differ from the name; others are shown as they are."""


def title_of(metric: str, *, sentence: bool = False) -> str:
    """Return the name of a metric for people.

    Parameters
    ----------
    metric
        Its name, after that of the head if there are several.
    sentence
        Whether it begins a sentence.

    Examples
    --------
    >>> title_of("val/rmse"), title_of("own_score"), title_of("val/ddg/rmse")
    ('RMSE', 'own_score', 'ddg RMSE')
    >>> title_of("balanced_accuracy", sentence=True), title_of("own_score", sentence=True)
    ('Balanced accuracy', 'Own score')
    """
    head, _, bare = metric.removeprefix("val/").rpartition("/")
    title = f"{head} {TITLES.get(bare, bare)}".strip()
    if not sentence:
        return title
    title = title if bare in TITLES else title.replace("_", " ")
    # names such as lDDT begin with a small letter anywhere
    return title if title[1:2].isupper() else title[:1].upper() + title[1:]
