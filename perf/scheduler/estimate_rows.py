"""Where the weights of measured starts come from, as data: a row each."""

TIERS = ("dram", "ssd", "remote")
