from molfun.testing.backbone import BackboneContract as BackboneContract
from molfun.testing.data import DataKindContract as DataKindContract
from molfun.testing.data import DatasetContract as DatasetContract
from molfun.testing.head import HeadContract as HeadContract
from molfun.testing.objective import ObjectiveContract as ObjectiveContract
from molfun.testing.samples import sequences as sequences
from molfun.testing.samples import series as series
from molfun.testing.strategy import StrategyContract as StrategyContract
from molfun.testing.task import TaskContract as TaskContract

__all__: list[str]
