"""Parameters of a model, part by part."""

from __future__ import annotations

from molfun.backbones.base import Backbone
from molfun.models.assembly import AssembledModel
from molfun.nn import lora


def parameter_table(model: AssembledModel) -> str:
    """Return a text table of all and of trainable parameters, per part."""
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = rows.setdefault(_part_of(name, model.backbone), [0, 0])
        entry[0] += parameter.numel()
        entry[1] += parameter.numel() if parameter.requires_grad else 0
    total = [sum(row[i] for row in rows.values()) for i in (0, 1)]
    lines = [f"{'part':<20}{'parameters':>14}{'trainable':>14}"]
    lines += [f"{part:<20}{n:>14,}{t:>14,}" for part, (n, t) in rows.items()]
    share = 100 * total[1] / max(total[0], 1)
    lines.append(f"{'total':<20}{total[0]:>14,}{total[1]:>14,}  ({share:.2f} %)")
    return "\n".join(lines)


def _part_of(name: str, backbone: Backbone) -> str:
    if name.startswith("head."):
        return "head"
    if lora.is_adapter(name):
        return "adapters"
    kind = backbone.layer_of(name.removeprefix("backbone.").replace(".base_layer", "")).kind
    return {"block": f"{len(backbone.blocks())} blocks"}.get(kind, kind.replace("_", " "))
