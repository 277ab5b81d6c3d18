"""Small series, and a Trainer that writes nothing it was not asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

UPSTREAM_WARNINGS = (
    # lightning 2.6.6 asks torch's pytrees the old way
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    # which is what some tests do on purpose
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    # both cores are in use as it is
    "ignore:The '.*_dataloader' does not have many workers",
)
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        for line in UPSTREAM_WARNINGS:
            item.add_marker(pytest.mark.filterwarnings(line))


def build_series(
    n: int = 24, *, task: str = "binary", seed: int = 0, features: int = 3, length: int = 8
) -> list[dict[str, torch.Tensor]]:
    """Series whose level decides the label, a tenth of the values missing."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(n, 1, 1, generator=generator)
    values = 5 + 2 * (level + 0.5 * torch.randn(n, length, features, generator=generator))
    mask = torch.rand(values.shape, generator=generator) > 0.1
    level = level.flatten()
    labels = {
        "binary": (level > 0).long(),
        "multiclass": (level > -0.5).long() + (level > 0.5).long(),
        "multilabel": torch.stack([level > 0, level > 0.5, level < -0.5], -1).long(),
        "regression": 10 + 3 * level,
    }[task]
    return [{"timeseries": values[i], "mask": mask[i], "label": labels[i]} for i in range(n)]


@pytest.fixture(scope="session")
def series() -> Callable[..., list[dict[str, torch.Tensor]]]:
    return build_series


@pytest.fixture(scope="session")
def loader() -> Callable[..., DataLoader[Any]]:
    """Factory: ``loader(24, batch_size=8, shuffle=False, task=..., seed=...)``."""

    def make(
        n: int = 24, *, batch_size: int = 8, shuffle: bool = False, **settings: Any
    ) -> DataLoader[Any]:
        data: Any = build_series(n, **settings)
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle)

    return make


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    """Factory: ``trainer(max_epochs=2, ...)``, a stock Trainer on the CPU."""
    import lightning.pytorch as pl

    def make(max_epochs: int = 1, **settings: Any) -> Any:
        quiet = {
            "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
            "enable_checkpointing": False, "log_every_n_steps": 1,
        }  # fmt: skip
        return pl.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            devices=1,
            default_root_dir=tmp_path,
            **{**quiet, **settings},
        )

    return make


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder after one epoch, as ``pt`` and within a Trainer's ``ckpt``."""
    import lightning.pytorch as pl

    from molfun.lightning import SSLPretrainModule

    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    module = SSLPretrainModule(
        {
            "encoder": {"name": "transformer", "d_model": 16, "n_heads": 2, "n_layers": 1},
            "ssl": {"name": "mae", "mask_ratio": 0.3},
        }
    )
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    data: Any = build_series()
    trainer.fit(module, DataLoader(data, batch_size=8))
    module.save_encoder(folder / "encoder.pt")
    trainer.save_checkpoint(folder / "ssl-last.ckpt")
    return {"pt": folder / "encoder.pt", "ckpt": folder / "ssl-last.ckpt"}
