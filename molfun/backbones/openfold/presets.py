"""Configurations: openfold's own presets, and "tiny", the same classes with fewer channels."""

from __future__ import annotations

import copy
import re
from typing import Any

from molfun.errors import ConfigError
from molfun.text import unknown_name

PRESETS = (
    "model_1", "model_2", "model_3", "model_4", "model_5",
    "model_1_ptm", "model_2_ptm", "model_3_ptm", "model_4_ptm", "model_5_ptm",
    "initial_training", "finetuning", "finetuning_ptm", "finetuning_no_templ",
    "finetuning_no_templ_ptm",
)  # fmt: skip
# without multimer presets: that model reads other features
TINY = "tiny"


def resolve_config(config: Any) -> tuple[str, Any]:
    """Return the name and a copy of an openfold config.

    A config object that equals a preset gets the preset's name.

    Parameters
    ----------
    config
        None (``model_1_ptm``), a preset name, "tiny", or an ``ml_collections.ConfigDict``.

    Raises
    ------
    ConfigError
        If openfold does not know the name, or the object is no openfold config.
    """
    if config is None:
        config = "model_1_ptm"
    if isinstance(config, str):
        return config, _named(config)
    if not (hasattr(config, "model") and hasattr(config, "globals") and hasattr(config, "data")):
        raise ConfigError(
            f"config must be a preset name or an openfold config with the sections model, globals "
            f"and data; got {type(config).__name__}."
        )
    from openfold.config import model_config

    name = next((name for name in PRESETS if model_config(name) == config), "custom")
    return name, copy.deepcopy(config)


def _named(name: str) -> Any:
    from openfold.config import model_config

    # openfold 2.x knows the names, 0.0.1 does not: refused alike
    if "multimer" in name:
        raise ConfigError(
            f"{name!r} is a multimer preset, which reads features of its own (asym_id, entity_id, "
            f"sym_id and paired alignments) that Molfun does not make. Take model_1_ptm: several "
            f"chains then stand apart by a jump of the residue index."
        )
    if name == TINY:
        return _tiny(model_config("model_1_ptm"))
    try:
        return model_config(name)
    except ValueError:
        raise ConfigError(unknown_name("openfold preset", name, (*PRESETS, TINY))) from None


def _tiny(config: Any) -> Any:
    """Shrink a config to two Evoformer and two structure-module blocks of a tenth of the width."""
    # every module class of the real model stays, so that tests run the real code in milliseconds
    shared = config.globals
    shared.c_z, shared.c_m, shared.c_t, shared.c_e, shared.c_s = 16, 32, 16, 16, 32
    model = config.model
    for stack, heads in (
        (model.evoformer_stack, 4),
        (model.extra_msa.extra_msa_stack, 4),
    ):
        stack.c_hidden_msa_att = 8
        stack.c_hidden_opm = 8
        stack.c_hidden_mul = 16
        stack.c_hidden_pair_att = 8
        stack.no_heads_msa = heads
        stack.no_heads_pair = 2
        stack.transition_n = 2
    model.evoformer_stack.no_blocks = 2
    model.extra_msa.extra_msa_stack.no_blocks = 1
    template = model.template
    template.template_pair_stack.no_blocks = 1
    template.template_pair_stack.c_hidden_tri_att = 8
    template.template_pair_stack.c_hidden_tri_mul = 16
    template.template_pair_stack.no_heads = 2
    template.template_pointwise_attention.no_heads = 2
    structure = model.structure_module
    structure.no_blocks = 2
    structure.no_heads_ipa = 4
    structure.c_resnet = 32
    return config


def jax_version(name: str, config: Any) -> str:
    """Return the name under which openfold's npz importer knows this architecture."""
    # The importer reads two facts from the name: models 3 to 5 have no templates, and a name that
    # ends in _ptm has the pTM head.
    if re.fullmatch(r"model_[1-5](_ptm)?", name):
        return name
    stem = "model_1" if config.model.template.enabled else "model_3"
    return f"{stem}_ptm" if config.model.heads.tm.enabled else stem
