from molfun.strategies.auto import choose_strategy as choose_strategy
from molfun.strategies.base import FinetuneStrategy as FinetuneStrategy
from molfun.strategies.full import FullFinetune as FullFinetune
from molfun.strategies.gradual import GradualFinetune as GradualFinetune
from molfun.strategies.head_only import HeadOnlyFinetune as HeadOnlyFinetune
from molfun.strategies.lora import LoRAFinetune as LoRAFinetune
from molfun.strategies.partial import PartialFinetune as PartialFinetune
from molfun.training.cache import CacheConfig as CacheConfig
from molfun.training.callbacks import Callback as Callback
from molfun.training.callbacks import CSVLog as CSVLog
from molfun.training.callbacks import FitPlan as FitPlan
from molfun.training.callbacks import StepReport as StepReport
from molfun.training.history import History as History
from molfun.training.task_head import TaskHead as TaskHead

__all__: list[str]
