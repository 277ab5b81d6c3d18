"""Pre-training and fine-tuning of time-series encoders under a Lightning Trainer.

For users who already work with a ``Trainer``, its callbacks and its loggers; needs
``molfun[lightning]``. Class names, registries, batches and configuration sections are those of the
guide "Training Module" for `SSLPretrainModule` and `FineTuneModule`, so that code written for it
runs unchanged. The modules are thin: encoders, objectives, heads, tasks and metrics are Molfun's
own, chosen by name from the same registries. Without a Trainer,
`MolfunStructureModel("timeseries")` does the same and more (exact resume, caches, reports).

==============================  ==============================================================
`SSLPretrainModule`             pre-trains an encoder with any objective
`FineTuneModule`                fine-tunes a pre-trained encoder with a task head
`load_config`                   reads the configuration of either from YAML, with overrides
`BaseEncoder`, `EncoderConfig`  base classes of a new encoder
`BaseSSLObjective`, ...         base classes of a new objective
`BaseTaskHead`, ...             base classes of a new head
==============================  ==============================================================

A new part is one class and one line, in any package::

    ENCODER_REGISTRY["my_encoder"] = MyEncoder      # a BaseEncoder; its settings in config_class
    SSL_REGISTRY["my_ssl"] = MySSLObjective         # a BaseSSLObjective
    TASK_HEAD_REGISTRY["my_head"] = MyTaskHead      # a BaseTaskHead

Batches are dicts with ``timeseries`` (batch, time, features) and optionally ``mask`` of the same
shape (True where a value was observed), ``padding_mask`` (batch, time; False for padding, which
comes last) and ``label`` (batch,) or (batch, classes).

Both modules standardise the input: mean and standard deviation of each feature over the training
data are computed once, before training, and saved with the encoder. ``data: {standardize: false}``
in the configuration leaves values as they are.
"""

from molfun._lazy import attach, require

require("lightning.pytorch", "pip install 'molfun[lightning]'")

__getattr__, __dir__, __all__ = attach(__name__, __file__)
