"""Experiment trackers: what a run sends to CSV files, TensorBoard, Weights & Biases and MLflow.

``fit(..., loggers=["tensorboard", "wandb"], output_dir=...)`` or ``molfun fine-tune --logger
tensorboard,wandb`` log loss, gradient norm and the learning rate of each group of parameters while
training, metrics, samples per second and peak memory once per epoch, the settings at the start and
the report at the end. A resumed run continues the run of the tracker, whose id is kept in
``loggers.json`` of the run folder.

A logger of your own is one class and one line: derive it from `Logger` and register it in
`molfun.registry.LOGGERS`, or by an entry point in the group ``molfun.loggers``.
"""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
