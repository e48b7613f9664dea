"""Who holds how much KV memory: slots, and a budget of tokens. Bookkeeping only; where the bytes are is each engine's.

A slot is room for one sequence of full length, of which only the part in use counts against the budget, in blocks. So
there may be more slots than the budget would fill, and short sequences share what one long one would take.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection

KV_BLOCK_TOKENS = 64


class KVBudget:
    """`total_tokens` holds at least one sequence of full length, so that whoever is alone can always go on.

    The lowest free slot is taken first: neighbours in memory can be computed on together.
    """

    def __init__(self, *, total_tokens: int, slots: int, max_sequence_tokens: int) -> None:
        assert total_tokens >= max_sequence_tokens
        self.total_tokens = total_tokens
        self.used_tokens = 0
        self._max_sequence_tokens = max_sequence_tokens
        self._free_slots = list(range(slots))
        self._taken: dict[int, int] = {}  # slot → tokens counted for it
        self._left: list[int] = []

    def take(self, tokens: int) -> int | None:
        """A slot with room for `tokens`, or None where there is no slot or no memory for them."""
        cost = self._cost(tokens)
        if not self._free_slots or self.used_tokens + cost > self.total_tokens:
            return None
        slot = heapq.heappop(self._free_slots)
        self._taken[slot] = cost
        self.used_tokens += cost
        return slot

    def could_take(self, tokens: int, freed: Collection[int]) -> bool:
        """Whether `take` would find room, were these slots free."""
        used_tokens = self.used_tokens - sum(self._taken[slot] for slot in freed)
        return bool(self._free_slots or freed) and used_tokens + self._cost(tokens) <= self.total_tokens

    def grow(self, slot: int, tokens: int) -> bool:
        """Make room for `tokens` in all in a slot that is taken. False where there is no memory."""
        more = self._cost(tokens) - self._taken[slot]
        if more > 0:
            if self.used_tokens + more > self.total_tokens:
                return False
            self._taken[slot] += more
            self.used_tokens += more
        return True

    def free(self, slot: int) -> None:
        self.used_tokens -= self._taken.pop(slot)
        heapq.heappush(self._free_slots, slot)
        self._left.append(slot)

    def take_left(self) -> list[int]:
        """The slots that were freed since the last call; what is in them must go before anyone else reads it."""
        left, self._left = self._left, []
        return left

    def _cost(self, tokens: int) -> int:
        blocks = -(-tokens // KV_BLOCK_TOKENS)
        return min(blocks * KV_BLOCK_TOKENS, self._max_sequence_tokens)
