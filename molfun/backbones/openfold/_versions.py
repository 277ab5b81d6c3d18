"""Differences between the openfold 1.x layout (0.0.1 on the package index) and 2.x, in one place.

The two hold the same 5046 tensors of model_1_ptm under different names; see
``convert_deprecated_v1_keys`` in openfold 2.x for the origin of the renames.
"""

from __future__ import annotations

import re

# Each pattern leaves names of the 2.x layout alone, so that applying all of them twice changes
# nothing: hence the anchors, and the look-ahead in the last one.
_RENAMES = (
    (re.compile(r"^template_angle_embedder\b"), "template_embedder.template_single_embedder"),
    (re.compile(r"^(template_(?:pair|pointwise|single)_\w+)"), r"template_embedder.\1"),
    (re.compile(r"\bcore\.(msa_transition|outer_product_mean)\b"), r"\1"),
    (re.compile(r"\bcore\.(tri_\w+|pair_transition)\b"), r"pair_stack.\1"),
    (re.compile(r"\b(ipa\.linear_(?:q|kv)_points)\.(?!linear\.)"), r"\1.linear."),
)
# left by wrappers: DDP ("module."), Lightning ("model."), Fabric ("_forward_module.")
_PREFIX = re.compile(r"^(?:module\.|model\.|_forward_module\.)+")


def canonical_key(key: str) -> str:
    """Return the name of a weight in the 2.x layout, from either layout.

    Unlike ``convert_deprecated_v1_keys`` it is idempotent, so the layout of a file need not be
    known.

    Examples
    --------
    >>> canonical_key("evoformer.blocks.0.core.tri_mul_out.linear_z.weight")
    'evoformer.blocks.0.pair_stack.tri_mul_out.linear_z.weight'
    >>> canonical_key("module.model.template_angle_embedder.linear_1.bias")
    'template_embedder.template_single_embedder.linear_1.bias'
    >>> canonical_key("structure_module.ipa.linear_q_points.linear.weight")
    'structure_module.ipa.linear_q_points.linear.weight'
    """
    key = _PREFIX.sub("", key)
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key
