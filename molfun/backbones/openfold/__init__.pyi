from molfun.backbones.openfold.backbone import OpenFoldBackbone as OpenFoldBackbone

__all__: list[str]
