"""Heads: from the backbone's representations to predictions, registered by name."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "AffinityHead": "molfun.heads.affinity",
        "ContactHead": "molfun.heads.contact",
        "ConvHead": "molfun.heads.conv",
        "Head": "molfun.heads.base",
        "LinearHead": "molfun.heads.pooled",
        "MLPHead": "molfun.heads.pooled",
    },
)
