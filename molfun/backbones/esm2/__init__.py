"""ESM-2 (Lin et al. 2023) through the ``fair-esm`` package."""

from molfun._lazy import require

require("esm", "pip install 'molfun[esm]'")

from molfun.backbones.esm2.backbone import ESM2Backbone  # noqa: E402  (needs esm)

__all__ = ["ESM2Backbone"]
