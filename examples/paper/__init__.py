"""The paper's study: its networks, its data sets, its training."""
