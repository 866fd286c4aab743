"""Unlabelled data -> factors, biases, BatchNorm statistics and, in the end, all parameters that fit the original."""

from tdcompress.calibration.calibrate import Fit, calibrate
from tdcompress.calibration.distill import DistillationResult, distill
from tdcompress.calibration.distillation_loss import distillation_loss
from tdcompress.calibration.distillation_options import DistillationOptions

__all__ = ["DistillationOptions", "DistillationResult", "Fit", "calibrate", "distill", "distillation_loss"]
