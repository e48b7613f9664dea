"""Who holds how much of each device's memory: granted before it is allocated, so that the sum never passes the budget
(decision 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class NoRoom(Exception):
    """The grant would pass a device's budget."""


class DeviceLedger:
    """One device's grants by holder, in bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._grants: dict[str, int] = {}

    @property
    def granted_bytes(self) -> int:
        return sum(self._grants.values())

    def free_bytes(self, ending: Iterable[str] = ()) -> int:
        """What is left, or will be once the holders in `ending` have given theirs back."""
        staying = self._grants.keys() - set(ending)
        return max(0, self.budget_bytes - sum(self._grants[holder] for holder in staying))

    def check(self, amount_bytes: int) -> None:
        """Raises NoRoom, with the numbers."""
        free = self.free_bytes()
        if amount_bytes > free:
            raise NoRoom(f"{amount_bytes} bytes of device memory asked for, {free} of {self.budget_bytes} are free")

    def grant(self, holder: str, amount_bytes: int) -> None:
        """Raises NoRoom. A holder that already has a grant keeps it."""
        if holder not in self._grants:
            self.check(amount_bytes)
            self._grants[holder] = amount_bytes

    def adopt(self, holder: str, amount_bytes: int) -> None:
        """Record memory that is in use already, whatever the budget says: the holder outlived the ledger."""
        self._grants[holder] = amount_bytes

    def give_back(self, holder: str) -> None:
        """Idempotent."""
        self._grants.pop(holder, None)


class DeviceLedgers:
    """The ledgers of a node's devices, by name. What a holder needs of several it gets on all of them or on none."""

    def __init__(self, budgets: Mapping[str, int]) -> None:
        self._ledgers = {device: DeviceLedger(budget_bytes) for device, budget_bytes in budgets.items()}

    @property
    def budget_bytes(self) -> int:
        """Of all devices together."""
        return sum(ledger.budget_bytes for ledger in self._ledgers.values())

    @property
    def granted_bytes(self) -> int:
        """On all devices together."""
        return sum(ledger.granted_bytes for ledger in self._ledgers.values())

    def amounts(self) -> dict[str, tuple[int, int]]:
        """Budget and granted bytes by device, in the order the budgets were given."""
        return {device: (ledger.budget_bytes, ledger.granted_bytes) for device, ledger in self._ledgers.items()}

    def free_bytes(self, ending: Iterable[str] = ()) -> dict[str, int]:
        """By device, as `DeviceLedger.free_bytes`."""
        ending = set(ending)
        return {device: ledger.free_bytes(ending) for device, ledger in self._ledgers.items()}

    def grant(self, holder: str, amounts: Mapping[str, int]) -> None:
        """Raises NoRoom, and has granted nothing then."""
        free = self.free_bytes()
        for device in sorted(amounts):
            if amounts[device] > free[device]:
                raise NoRoom(f"{amounts[device]} bytes of {device}'s memory asked for, {free[device]} are free")
        for device, amount_bytes in amounts.items():
            self._ledgers[device].grant(holder, amount_bytes)

    def adopt(self, holder: str, amounts: Mapping[str, int]) -> None:
        """Record what is in use already, in place of what was known of the holder; also of a device without budget."""
        self.give_back(holder)
        for device, amount_bytes in amounts.items():
            self._ledgers.setdefault(device, DeviceLedger(0)).adopt(holder, amount_bytes)

    def give_back(self, holder: str) -> None:
        """Idempotent."""
        for ledger in self._ledgers.values():
            ledger.give_back(holder)
