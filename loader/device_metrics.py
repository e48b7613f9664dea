"""What the attaches of one GPU added up to, and how fast it takes copies. Pure; time comes in as durations."""

from __future__ import annotations

from collections.abc import Sequence

from .device_images import DeviceImage, DeviceImageState
from .metrics import BandwidthMeter
from .receipts import LoadReceipt
from .store_status import DeviceImageStatus, DeviceStatus

_COPY = "copy"


class DeviceMeter:
    """Sums since the daemon began."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._meter = BandwidthMeter()
        self._attaches = 0
        self._copies = 0
        self._failed_copies = 0
        self._copied_bytes = 0
        self._copy_s = 0.0

    @property
    def bytes_per_second(self) -> float | None:
        """Of copies of what was in DRAM already; None if there was none."""
        return self._meter.bytes_per_second(self._device).get(_COPY)

    def attached(self, attaches: int = 1) -> None:
        self._attaches += attaches

    def copied(self, receipt: LoadReceipt, duration_s: float) -> None:
        """`receipt` tells how the bytes came into DRAM; most of what had to be read was copied meanwhile."""
        self._copies += 1
        self._copied_bytes += receipt.bytes
        self._copy_s += duration_s
        if receipt.tier == "dram":
            self._meter.record(self._device, _COPY, receipt.bytes, duration_s)

    def failed(self) -> None:
        self._failed_copies += 1

    def status(self, images: Sequence[DeviceImage], budget_bytes: int) -> DeviceStatus:
        """Of the device, given its images."""
        return DeviceStatus(
            device=self._device,
            budget_bytes=budget_bytes,
            used_bytes=sum(image.bytes for image in images if image.is_charged),
            leased_bytes=sum(image.bytes for image in images if image.leases),
            held_bytes=sum(image.bytes for image in images if image.state is DeviceImageState.HELD),
            images=tuple(map(_status_of, images)),
            attaches=self._attaches,
            copies=self._copies,
            failed_copies=self._failed_copies,
            copied_bytes=self._copied_bytes,
            copy_s=self._copy_s,
            copy_bytes_per_second=self.bytes_per_second or 0.0,
        )


def _status_of(image: DeviceImage) -> DeviceImageStatus:
    return DeviceImageStatus(path=image.path, bytes=image.bytes, state=image.state.value, leases=image.leases.total())
