"""Unlabelled data -> factors, biases and BatchNorm statistics that fit the compressed network."""

from tdcompress.calibration.calibrate import Fit, calibrate

__all__ = ["Fit", "calibrate"]
