"""What a compressed model costs, beside what it cost dense: parameters, multiply-adds, time, as a table."""

from tdcompress.report.report import report
from tdcompress.report.result import Cost, LayerReport, Report

__all__ = ["Cost", "LayerReport", "Report", "report"]
