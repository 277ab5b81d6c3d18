from molfun.backbones.base import Backbone as Backbone
from molfun.backbones.base import Features as Features
from molfun.backbones.base import Layer as Layer
from molfun.trunk import TrunkOutput as TrunkOutput

__all__: list[str]
