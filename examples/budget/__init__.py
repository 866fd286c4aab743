"""A whole network under a budget: what others do beside td.plan, in one run."""
