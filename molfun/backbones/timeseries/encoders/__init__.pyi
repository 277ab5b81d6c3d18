from molfun.backbones.timeseries.encoders.base import BaseEncoder as BaseEncoder
from molfun.backbones.timeseries.encoders.base import EncoderConfig as EncoderConfig
from molfun.backbones.timeseries.encoders.base import LayeredEncoder as LayeredEncoder
from molfun.backbones.timeseries.encoders.gru_d import GRUDEncoder as GRUDEncoder
from molfun.backbones.timeseries.encoders.linear import LinearEncoder as LinearEncoder
from molfun.backbones.timeseries.encoders.transformer import (
    TransformerEncoder as TransformerEncoder,
)
from molfun.registry import Registry

__all__: list[str]
ENCODER_CONFIG_REGISTRY: Registry
ENCODER_REGISTRY: Registry
