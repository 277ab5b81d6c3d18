"""The PET model of metatrain; the only package here that imports metatrain and metatomic."""

from molfun.backbones.pet._stock import import_metatrain

import_metatrain()

from molfun.backbones.pet.backbone import PETBackbone  # noqa: E402  (after the quiet import)

__all__ = ["PETBackbone"]
