"""Budget -> the best method and rank for every layer."""

from tdcompress.planning.options import DENSE, Option
from tdcompress.planning.plan import LayerPlan, Plan
from tdcompress.planning.planner import plan

__all__ = ["DENSE", "LayerPlan", "Option", "Plan", "plan"]
