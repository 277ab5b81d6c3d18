from molfun.config import Settings as Settings
from molfun.config import option as option
from molfun.data.affinity import AffinityDataset as AffinityDataset
from molfun.data.atoms import AtomsDataset as AtomsDataset
from molfun.data.base import SampleDataset as SampleDataset
from molfun.data.batching import LengthBatchSampler as LengthBatchSampler
from molfun.data.fasta import read_fasta as read_fasta
from molfun.data.feature_files import read_features as read_features
from molfun.data.feature_files import write_features as write_features
from molfun.data.kinds.base import DataKind as DataKind
from molfun.data.kinds.base import Labels as Labels
from molfun.data.named_targets import NamedTargets as NamedTargets
from molfun.data.sequences import SequenceDataset as SequenceDataset
from molfun.data.series.dataset import TimeSeriesDataset as TimeSeriesDataset
from molfun.data.series.dataset import open_timeseries as open_timeseries
from molfun.data.series.demo import double_well as double_well
from molfun.data.series.samples import check_groups as check_groups
from molfun.data.series.trajectories import observables as observables
from molfun.data.splits import DataSplitter as DataSplitter
from molfun.data.structures import find_structure as find_structure
from molfun.data.structures import read_structure as read_structure
from molfun.data.tables import read_table as read_table
from molfun.sample import Sample as Sample
from molfun.sample import SampleBatch as SampleBatch
from molfun.sample import is_missing as is_missing

__all__: list[str]
