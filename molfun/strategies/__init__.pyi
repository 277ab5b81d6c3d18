from molfun.strategies.auto import choose_strategy as choose_strategy
from molfun.strategies.base import FinetuneStrategy as FinetuneStrategy
from molfun.strategies.full import FullFinetune as FullFinetune
from molfun.strategies.gradual import GradualFinetune as GradualFinetune
from molfun.strategies.head_only import HeadOnlyFinetune as HeadOnlyFinetune
from molfun.strategies.lora import LoRAFinetune as LoRAFinetune
from molfun.strategies.partial import PartialFinetune as PartialFinetune

__all__: list[str]
