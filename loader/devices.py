"""What GPUs are called: processes number them each in their own way, so the store and its clients say names.

A name is the device's UUID as `nvidia-smi -L` prints it; a number is what CUDA_VISIBLE_DEVICES made of it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _core
from .errors import DeviceUnavailable

if TYPE_CHECKING:
    import torch

CPU = "cpu"


def is_cpu(device: str | torch.device) -> bool:
    return str(device) == CPU


def is_cuda(device: str | torch.device) -> bool:
    return str(device).partition(":")[0] == "cuda"


def name_of(device: str | torch.device) -> str:
    """The name of "cuda:0", or of "cuda": torch's current device. Raises DeviceUnavailable."""
    kind, _, number = str(device).partition(":")
    if kind != "cuda" or not (number.isdecimal() or not number):
        raise DeviceUnavailable(f"the store cannot bring weights onto {device}; name a device such as cuda:0, or cpu")
    ordinal, names = int(number) if number else _current(), _core.gpu_uuids()
    if ordinal >= len(names):
        raise DeviceUnavailable(
            f"there is no device {device}; this process sees {len(names)}: check nvidia-smi -L and CUDA_VISIBLE_DEVICES"
        )
    return names[ordinal]


def check_device(device: str | torch.device) -> None:
    """Whether torch knows such a device, and has it where it is no CUDA device. Raises DeviceUnavailable."""
    import torch

    try:
        found = torch.device(str(device))
        if found.type != "cuda":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # in whichever words: every kind of device has its own
        raise DeviceUnavailable(
            f"nothing can be loaded to device {device!r}; give 'cpu', 'cuda' or 'cuda:N'"
        ) from error


def device_of(name: str) -> _core.GpuDevice:
    """The GPU of that name, among those that this process may see. Raises DeviceUnavailable."""
    names = _core.gpu_uuids()
    if name not in names:
        raise DeviceUnavailable(f"this process sees no device {name}; check nvidia-smi -L and CUDA_VISIBLE_DEVICES")
    return _core.GpuDevice(names.index(name))


def check_torch_reaches(device: str | torch.device) -> None:
    """For tensors that torch itself shall bring to a device. Raises DeviceUnavailable."""
    import torch

    check_device(device)
    if is_cuda(device) and not torch.cuda.is_available():
        raise unreachable(device)


def unreachable(device: str | torch.device) -> DeviceUnavailable:
    """This process's torch cannot use a GPU; the error says what to do."""
    import torch

    return DeviceUnavailable(
        f"torch {torch.__version__} reaches no CUDA device for {device}; install a CUDA build of torch and check "
        "nvidia-smi, or load with device='cpu'"
    )


def _current() -> int:
    import torch

    return torch.cuda.current_device() if torch.cuda.is_available() else 0
