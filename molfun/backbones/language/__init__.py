"""Shared parts of protein language models: letters, packed sequences, windows, weight files."""

from molfun.backbones.language.backbone import LanguageBackbone

__all__ = ["LanguageBackbone"]
