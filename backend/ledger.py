"""Who holds how much of a device's memory: granted before it is allocated, so that the sum never passes the budget
(decision 4).
"""

from __future__ import annotations

from collections.abc import Iterable


class NoRoom(Exception):
    """The grant would pass the device's budget."""


class DeviceLedger:
    """One device's grants by holder, in bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._grants: dict[str, int] = {}

    @property
    def granted_bytes(self) -> int:
        return sum(self._grants.values())

    def grant(self, holder: str, amount_bytes: int) -> None:
        """Raises NoRoom with the numbers. A holder that already has a grant keeps it."""
        if holder not in self._grants:
            self.check(amount_bytes)
            self._grants[holder] = amount_bytes

    def check(self, amount_bytes: int, ending: Iterable[str] = ()) -> None:
        """Raises NoRoom where a grant would not fit, nor after the holders in `ending` have given theirs back."""
        free = self.budget_bytes - self.granted_bytes
        if amount_bytes > free + sum(self._grants.get(holder, 0) for holder in ending):
            raise NoRoom(f"{amount_bytes} bytes of device memory asked for, {free} of {self.budget_bytes} are free")

    def adopt(self, holder: str, amount_bytes: int) -> None:
        """Record memory that is in use already, whatever the budget says: the holder outlived the ledger."""
        self._grants[holder] = amount_bytes

    def give_back(self, holder: str) -> None:
        """Idempotent."""
        self._grants.pop(holder, None)
