"""Checkpoints that lie elsewhere: URLs, ranged reads into the arena, and the SSD cache that is written behind them.

Imported on first use only: a store of local checkpoints pays neither for asyncio nor for obstore.
"""
