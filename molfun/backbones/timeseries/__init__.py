"""Encoders of multivariate time series with missing values, as a backbone."""

from molfun.backbones.timeseries.backbone import TimeSeriesBackbone

__all__ = ["TimeSeriesBackbone"]
