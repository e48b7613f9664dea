"""Plays the world for a device keeper: checkpoints that do not exist, copies that end when a test says so."""

from dataclasses import replace

from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.device_effects import RecordedDeviceEffects
from serverless_triton.loader.device_images import DeviceImage
from serverless_triton.loader.device_keeper import DeviceKeeper
from serverless_triton.loader.processes import ProcessId
from serverless_triton.loader.receipts import Estimate, LoadReceipt
from serverless_triton.loader.replies import DeviceAttached, Failed
from serverless_triton.loader.requests import AttachDevice, LeaseCount, ReclaimDevices

GPU = "GPU-1"
MEGABYTES = 1 << 20
FROM_SSD = LoadReceipt(
    tier="ssd",
    bytes=10 * MEGABYTES,
    queue_s=1.0,
    read_s=2.0,
    copy_s=0.0,
    attach_s=0.0,
    direct_io=True,
    verified=True,
    scattered=True,
    throttle_bytes_per_second=0,
)
FROM_DRAM = replace(FROM_SSD, tier="dram", queue_s=0.0, read_s=0.0)
DRAM_ESTIMATE = Estimate(tier="ssd", queue_s=1.0, read_s=2.0, copy_s=0.0, total_s=3.0, is_measured=True)


def checkpoint(path: str, megabytes: int = 10, mtime_ns: int = 0) -> Checkpoint:
    file = CheckpointFile(name="m", real_path=f"{path}/m", bytes=megabytes * MEGABYTES, mtime_ns=mtime_ns, inode=1)
    return Checkpoint(path=path, device="disk:1", files=(file,))


def process(client: int) -> ProcessId:
    return ProcessId(pid=1000 + client, start_time=client)


class World:
    """A device keeper whose effects a test plays."""

    def __init__(self, budget_megabytes: int = 30) -> None:
        self.effects = RecordedDeviceEffects()
        self.keeper = DeviceKeeper(budget_megabytes * MEGABYTES, self.effects)
        for client in (1, 2, 3):
            self.keeper.connect(client, process(client))
        self.images: dict[int, DeviceImage] = {}

    def attach(self, client: int, path: str, now_s: float = 0.0, *, device: str = GPU, progress: bool = False) -> None:
        self.ask(client, checkpoint(path), now_s, device=device, progress=progress)

    def ask(
        self, client: int, wanted: Checkpoint, now_s: float = 0.0, *, device: str = GPU, progress: bool = False
    ) -> None:
        request = AttachDevice(
            id=100 * client, path=wanted.path, device=device, session=f"session {client}", progress=progress
        )
        self.keeper.attach(client, request, wanted, now_s)

    def reclaim(self, client: int, *leases: LeaseCount, session: str = "session 1") -> None:
        self.keeper.reclaim(client, ReclaimDevices(id=1, session=session, leases=leases), 5.0)

    def image(self, path: str, device: str = GPU) -> DeviceImage:
        found = self.keeper._images.find(device, checkpoint(path).files)
        assert found is not None
        return found

    def arrive(self, path: str, receipt: LoadReceipt = FROM_DRAM, device: str = GPU) -> DeviceImage:
        """All that lies between an attach and its answer."""
        image = self.image(path, device)
        self.keeper.allocated(image, 1.0)
        self.keeper.loaded(image, receipt, 3.0)
        self.keeper.copied(image, 3.5)
        return image

    def resident(self, path: str, client: int = 1) -> DeviceImage:
        """On the device, and nobody uses it."""
        self.attach(client, path)
        image = self.arrive(path)
        self.keeper.release(client, image.id, 4.0)
        self.effects.handed_over.clear()
        self.effects.done.clear()
        return image

    def done(self, what: str) -> list[int]:
        return [image_id for name, image_id in self.effects.done if name == what]

    def answers(self, client: int) -> list[DeviceAttached]:
        return [message for receiver, message in self.effects.handed_over if receiver == client]

    def failures(self, client: int) -> list[str]:
        return [m.error for receiver, m in self.effects.replies if receiver == client and isinstance(m, Failed)]
