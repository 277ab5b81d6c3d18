"""Sequence regression with ESM-2 in five names: dataset, data module, config, train, infer.

A front end with the class names, arguments and defaults of NVIDIA BioNeMo's guide "ESM-2
Fine-Tuning". It adds no training code: a config becomes a `MolfunStructureModel` and a strategy,
`train_model` calls ``fit`` and writes an ordinary checkpoint. For classification, labels per
residue, LoRA or splits use `MolfunStructureModel` itself.

=============================================  ==================================================
here                                           in Molfun
=============================================  ==================================================
``InMemorySingleValueDataset``                 `SequenceDataset.from_list`
``micro_batch_size``                           batch size of the loader
``global_batch_size``                          ``accumulation_steps`` times the micro batch
``encoder_frozen``                             `HeadOnlyFinetune`, or `FullFinetune` if False
``ft_dropout``                                 dropout of the head ``"mlp"``, 256 hidden channels
``RegressorLossReduction``                     `RegressionTask` on labels that are not rescaled
``n_steps_train``                              ``fit(max_steps=...)``
``initial_ckpt_path``                          ``weights=...`` or ``from_checkpoint``
=============================================  ==================================================

``python -m molfun.esm2 train`` and ``python -m molfun.esm2 infer`` are demos on ten sequences.
"""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
