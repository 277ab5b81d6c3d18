"""Training: strategies (what trains and how fast) and the engine (the loop)."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "CacheConfig": "molfun.training.cache",
        "Callback": "molfun.training.callbacks",
        "FinetuneStrategy": "molfun.training.base",
        "FullFinetune": "molfun.training.full",
        "GradualFinetune": "molfun.training.gradual",
        "HeadOnlyFinetune": "molfun.training.head_only",
        "History": "molfun.training.history",
        "LoRAFinetune": "molfun.training.lora",
        "PartialFinetune": "molfun.training.partial",
        "choose_strategy": "molfun.training.auto",
    },
)
