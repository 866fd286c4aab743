"""Budget -> the best method and rank for every layer."""

from tdcompress.planning.layer import LayerPlan
from tdcompress.planning.options import DENSE, Option
from tdcompress.planning.planner import plan
from tdcompress.planning.result import Plan

__all__ = ["DENSE", "LayerPlan", "Option", "Plan", "plan"]
