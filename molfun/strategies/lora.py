"""Train low-rank adapters and the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.nn import int8, lora
from molfun.strategies.base import Entry, FinetuneStrategy
from molfun.text import unknown_name


@dataclass(frozen=True, kw_only=True)
class LoRAFinetune(FinetuneStrategy):
    """Freeze the backbone and train low-rank adapters in its blocks; the recommended default.

    Each adapted layer computes ``W x + (alpha / rank) B A x``. ``B`` starts at zero, so the first
    prediction is the pretrained model's. On OpenFold (48 blocks) the default targets give
    1,179,648 adapter weights at rank 8, 589,824 at rank 4.

    Parameters
    ----------
    rank
        Inner dimension; 4 for fewer than 200 samples, 16 for more than 2000.
    alpha
        Scale; None means ``2 * rank``.
    dropout
        Dropout on the adapters' input.
    target_modules
        Last parts of the names of the layers to adapt, matched whole; None takes the backbone's
        default (query and value projections of every attention in every block).
    adapt_last_n
        Adapt only so many blocks, counted from the end; the others are computed once per sample
        and kept (see `molfun.training.CacheConfig`). None adapts all.
    adapt_structure_module
        Adapt the query and value projections of the structure module as well (OpenFold's invariant
        point attention). They have gradients only from tasks that read the structure.
    lr_lora
        Learning rate of the adapters.
    lr_head
        Learning rate of the head; None means ten times `lr_lora`.
    base
        ``"int8"`` keeps the frozen linear layers of the blocks in int8, a quarter of their memory:
        rounded weights, one scale per row, through torchao (``pip install 'molfun[int8]'``).
        Products, adapters, head, norms and embeddings stay floats. For ESM-2 and OpenFold; not with
        `use_dora`.
    use_hf
        Accepted for compatibility. Adapters are always those of Hugging Face ``peft``, injected
        in place, and are saved in its format.
    use_dora, use_rslora
        Variants, see `molfun.nn.lora.LoRASpec`.

    References
    ----------
    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

    Examples
    --------
    >>> LoRAFinetune(rank=8, lr_lora=1e-4).head_lr
    0.001
    """

    name: ClassVar[str] = "lora"
    lr_name: ClassVar[str] = "lr_lora"

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: tuple[str, ...] | list[str] | None = None
    adapt_last_n: int | None = None
    adapt_structure_module: bool = False
    lr_lora: float = 1e-4
    lr_head: float | None = None
    base: int8.Base = "float32"
    use_hf: bool = True
    use_dora: bool = False
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        super().__post_init__()

    def _problems(self) -> Iterable[str]:
        yield from self._positive("lr_lora", "lr_head", "alpha")
        if not 1 <= self.rank <= lora.MAX_RANK:
            yield f"rank must be from 1 to {lora.MAX_RANK}, got {self.rank}."
        if self.adapt_last_n is not None and self.adapt_last_n < 1:
            yield f"adapt_last_n must be at least 1, got {self.adapt_last_n}."
        yield from self._problems_of_base()
        if not 0 <= self.dropout < 1:
            yield f"dropout must be in [0, 1), got {self.dropout}."
        if isinstance(self.target_modules, str):
            yield f"target_modules must be a list of names, got {self.target_modules!r}."
        if self.target_modules is not None and not self.target_modules:
            yield "target_modules is empty; leave it out for the backbone's default."

    def _problems_of_base(self) -> Iterator[str]:
        if self.base not in int8.BASES:
            yield unknown_name("base", self.base, int8.BASES)
        elif self.quantises and self.use_dora:
            yield "use_dora needs the norms of float weights, and base is 'int8'. Leave one out."

    @property
    def adds_adapters(self) -> bool:
        """True: LoRA trains weights that it adds to the backbone."""
        return True

    @property
    def quantises(self) -> bool:
        """True if `base` is int8."""
        return self.base == "int8"

    def prepare(self, backbone: Backbone) -> None:
        """Inject the adapters, once, and quantise what they are put on."""
        int8.check_base(self.base, backbone)
        lora.inject(backbone, self.spec(backbone))
        if self.quantises:
            int8.quantise(backbone)

    def spec(self, backbone: Backbone) -> lora.LoRASpec:
        """Return what is injected into this backbone.

        Raises
        ------
        ConfigError
            If `adapt_last_n` is more than its blocks, or it has no structure module.
        """
        if self.adapt_structure_module and not backbone.lora_structure:
            raise ConfigError(
                f"adapt_structure_module=True, but {backbone.display_name} has no structure "
                f"module. Leave it out."
            )
        n_blocks, last = len(backbone.blocks()), self.adapt_last_n
        if last is not None and last > n_blocks:
            raise ConfigError(
                f"adapt_last_n={last}, but {backbone.display_name} has {n_blocks} blocks. Use at "
                f"most {n_blocks}, or leave it out to adapt all."
            )
        return lora.LoRASpec(
            rank=self.rank,
            alpha=2.0 * self.rank if self.alpha is None else float(self.alpha),
            dropout=self.dropout,
            target_modules=tuple(self.target_modules or backbone.lora_targets),
            scope=backbone.block_prefix,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            blocks=None if last is None else tuple(range(n_blocks - last, n_blocks)),
            also=backbone.lora_structure if self.adapt_structure_module else (),
        )

    def backbone_entries(self, backbone: Backbone) -> Iterator[Entry]:
        """Return the adapter weights."""
        for name, parameter in lora.parameters(backbone):
            yield "lora", self.lr_lora, name, parameter
