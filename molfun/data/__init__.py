"""Data sets: tables, structures, pre-computed features, splits.

>>> from molfun.data import AffinityDataset
>>> dataset = AffinityDataset.synthetic(2, length=8)
>>> dataset.ids
['demo_000', 'demo_001']
"""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__,
    {
        "AffinityDataset": "molfun.data.affinity",
        "LengthBatchSampler": "molfun.data.batching",
        "SequenceDataset": "molfun.data.sequences",
        "read_fasta": "molfun.data.fasta",
        "DataSplitter": "molfun.data.splits",
        "AtomsDataset": "molfun.data.atoms",
        "TimeSeriesDataset": "molfun.data.timeseries",
        "check_groups": "molfun.data.timeseries",
        "double_well": "molfun.data.timeseries_demo",
        "observables": "molfun.data.trajectories",
        "open_timeseries": "molfun.data.timeseries",
        "find_structure": "molfun.data.structures",
        "read_features": "molfun.data.feature_files",
        "read_structure": "molfun.data.structures",
        "read_table": "molfun.data.tables",
        "write_features": "molfun.data.feature_files",
    },
)
