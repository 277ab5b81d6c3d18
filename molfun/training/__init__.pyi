from molfun.training.auto import choose_strategy as choose_strategy
from molfun.training.base import FinetuneStrategy as FinetuneStrategy
from molfun.training.cache import CacheConfig as CacheConfig
from molfun.training.callbacks import Callback as Callback
from molfun.training.callbacks import CSVLog as CSVLog
from molfun.training.callbacks import FitPlan as FitPlan
from molfun.training.full import FullFinetune as FullFinetune
from molfun.training.gradual import GradualFinetune as GradualFinetune
from molfun.training.head_only import HeadOnlyFinetune as HeadOnlyFinetune
from molfun.training.history import History as History
from molfun.training.lora import LoRAFinetune as LoRAFinetune
from molfun.training.partial import PartialFinetune as PartialFinetune

__all__: list[str]
