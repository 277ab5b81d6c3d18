from molfun.data.affinity import AffinityDataset as AffinityDataset
from molfun.data.atoms import AtomsDataset as AtomsDataset
from molfun.data.batching import LengthBatchSampler as LengthBatchSampler
from molfun.data.sequences import SequenceDataset as SequenceDataset
from molfun.data.series.dataset import TimeSeriesDataset as TimeSeriesDataset
from molfun.data.splits import DataSplitter as DataSplitter
from molfun.data.structure_dataset import StructureDataset as StructureDataset
from molfun.errors import MolfunError as MolfunError
from molfun.models.prediction import Prediction as Prediction
from molfun.models.structure import MolfunStructureModel as MolfunStructureModel
from molfun.sample import Sample as Sample
from molfun.sample import SampleBatch as SampleBatch
from molfun.strategies.base import FinetuneStrategy as FinetuneStrategy
from molfun.strategies.full import FullFinetune as FullFinetune
from molfun.strategies.gradual import GradualFinetune as GradualFinetune
from molfun.strategies.head_only import HeadOnlyFinetune as HeadOnlyFinetune
from molfun.strategies.lora import LoRAFinetune as LoRAFinetune
from molfun.strategies.partial import PartialFinetune as PartialFinetune
from molfun.training.cache import CacheConfig as CacheConfig
from molfun.training.callbacks import Callback as Callback
from molfun.training.history import History as History

__all__: list[str]
__version__: str
