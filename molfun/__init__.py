"""Molfun: fine-tune molecular foundation models.

>>> import molfun
>>> sorted(molfun.__all__)
['AffinityDataset', 'AtomsDataset', 'CacheConfig', 'Callback', 'DataSplitter', 'FinetuneStrategy',
'FullFinetune', 'GradualFinetune', 'HeadOnlyFinetune', 'History', 'LengthBatchSampler',
'LoRAFinetune', 'MolfunError', 'MolfunStructureModel', 'PartialFinetune', 'Prediction', 'Sample',
'SampleBatch', 'SequenceDataset', 'StructureDataset', 'TimeSeriesDataset', '__version__']
"""

from molfun._lazy import attach

__version__ = "0.1.0"
__getattr__, __dir__, _names = attach(__name__, __file__)
__all__ = ["__version__", *_names]
