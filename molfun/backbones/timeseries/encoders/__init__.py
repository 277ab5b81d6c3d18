"""Encoders of time series, and the registries to add more.

``ENCODER_REGISTRY["my_encoder"] = MyEncoder`` is enough if the class sets ``config_class``;
otherwise ``ENCODER_CONFIG_REGISTRY["my_encoder"] = MyEncoderConfig`` registers its configuration.
"""

from molfun._lazy import attach
from molfun.registry import ENCODER_CONFIGS as ENCODER_CONFIG_REGISTRY
from molfun.registry import ENCODERS as ENCODER_REGISTRY

__getattr__, __dir__, _names = attach(__name__, __file__)
__all__ = [*_names, "ENCODER_CONFIG_REGISTRY", "ENCODER_REGISTRY"]
