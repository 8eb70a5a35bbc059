"""Irregular time series: batches, unrolls, latent ODEs."""

from steer_lightning.nn.series.batch import SeriesBatch, check_series, keep_times, make_series

__all__ = ["SeriesBatch", "check_series", "keep_times", "make_series"]
