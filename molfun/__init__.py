"""Molfun: fine-tune molecular foundation models.

>>> import molfun
>>> sorted(molfun.__all__)
['AffinityDataset', 'DataSplitter', 'FinetuneStrategy', 'FullFinetune', 'GradualFinetune',
'HeadOnlyFinetune', 'LengthBatchSampler', 'LoRAFinetune', 'MolfunError', 'MolfunStructureModel',
'PartialFinetune', 'SequenceDataset', 'TimeSeriesDataset', '__version__']
"""

from molfun._lazy import attach

__version__ = "0.1.0"
__getattr__, _names = attach(
    __name__,
    {
        "AffinityDataset": "molfun.data",
        "DataSplitter": "molfun.data",
        "FinetuneStrategy": "molfun.training",
        "FullFinetune": "molfun.training",
        "GradualFinetune": "molfun.training",
        "HeadOnlyFinetune": "molfun.training",
        "LoRAFinetune": "molfun.training",
        "LengthBatchSampler": "molfun.data",
        "MolfunError": "molfun.errors",
        "MolfunStructureModel": "molfun.models.structure",
        "PartialFinetune": "molfun.training",
        "SequenceDataset": "molfun.data",
        "TimeSeriesDataset": "molfun.data",
    },
)
__all__ = ["__version__", *_names]
