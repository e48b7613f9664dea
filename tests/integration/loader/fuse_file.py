"""A file system of one file that fails in earnest: a FUSE server by its raw protocol (linux/fuse.h), run as a program.

    fuse_file.py MOUNT_POINT BACKING [--fail-from N] [--end-at N] [--touch] [--relink LINK TARGET] [--hang getattr|open]

shows the file BACKING at MOUNT_POINT, an empty file, until it is terminated. Reads of a byte from N on fail with EIO
(--fail-from), or find the file ended there though it says that it is longer (--end-at); --touch gives the file another
modification time once its last byte was read; --relink has the symbolic link LINK lead to TARGET once the file was
opened; --hang leaves who asks for its attributes, or opens it, without an answer. It says "ready" once it is mounted,
and exits with 77 where it may not.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from pathlib import Path
from types import FrameType

IN_HEADER = struct.Struct("<IIQQIIII")
OUT_HEADER = struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHH8I")
ATTR_OUT = struct.Struct("<QIIQQQQQQIIIIIIIIII")
OPEN_OUT = struct.Struct("<QII")
READ_IN = struct.Struct("<QQI")

FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, ACCESS, INTERRUPT = 2, 3, 14, 15, 17, 18, 25, 26, 34, 36
NO_REPLY = frozenset({FORGET, INTERRUPT})
HANGING = {"getattr": GETATTR, "open": OPEN}
MAX_PAGES_FLAG = 1 << 22
REQUEST_BYTES = 1 << 20
MNT_DETACH = 2
MAY_NOT_MOUNT = 77


class FailingFile:
    """Answers the kernel's questions about the one file, which is its own mount's root."""

    def __init__(
        self, backing: Path, fail_from: int | None, end_at: int | None, touch: bool, relink: list[Path]
    ) -> None:
        self._fd = os.open(backing, os.O_RDONLY)
        self._bytes = backing.stat().st_size
        self._fail_from = self._bytes if fail_from is None else fail_from
        self._end_at = self._bytes if end_at is None else end_at
        self._touch = touch
        self._relink = relink
        self._mtime_s = 1_000_000_000

    def answer(self, opcode: int, body: bytes) -> bytes:
        """The reply's body. Raises OSError for an error reply."""
        if opcode == INIT:
            flags = MAX_PAGES_FLAG
            return INIT_OUT.pack(7, 31, 0, flags, 16, 16, REQUEST_BYTES, 1, REQUEST_BYTES // 4096, 0, *([0] * 8))
        if opcode == GETATTR:
            return self._attributes()
        if opcode == OPEN:
            self._lead_away()
            return OPEN_OUT.pack(1, 0, 0)
        if opcode == READ:
            _, offset, size = READ_IN.unpack_from(body)
            return self._read(offset, size)
        if opcode in (RELEASE, FLUSH, ACCESS):
            return b""
        raise OSError(errno.ENOSYS, "not served")

    def _attributes(self) -> bytes:
        blocks = -(-self._bytes // 512)
        times = [self._mtime_s] * 3
        return ATTR_OUT.pack(
            0, 0, 0, 1, self._bytes, blocks, *times, 0, 0, 0, stat.S_IFREG | 0o444, 1, 0, 0, 0, 4096, 0
        )

    def _lead_away(self) -> None:
        if self._relink:
            link, target = self._relink
            link.unlink()
            link.symlink_to(target)

    def _read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self._bytes)
        if end > self._fail_from:
            raise OSError(errno.EIO, "the disk is broken")
        if self._touch and end == self._bytes:
            self._mtime_s += 1
        return os.pread(self._fd, max(0, min(end, self._end_at) - offset), offset)


def serve(device: int, file: FailingFile, unanswered: frozenset[int]) -> None:
    while True:
        try:
            request = os.read(device, REQUEST_BYTES + 4096)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            return  # unmounted
        _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
        if opcode in unanswered:
            continue
        try:
            body, code = file.answer(opcode, request[IN_HEADER.size :]), 0
        except OSError as error:
            body, code = b"", -(error.errno or errno.EIO)
        os.write(device, OUT_HEADER.pack(OUT_HEADER.size + len(body), code, unique) + body)


def mount(device: int, place: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode={stat.S_IFREG | 0o444:o},user_id={os.getuid()},group_id={os.getgid()}"
    return libc.mount(b"failing", os.fsencode(place), b"fuse", 0, options.encode()) == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("backing", type=Path)
    parser.add_argument("--fail-from", type=int)
    parser.add_argument("--end-at", type=int)
    parser.add_argument("--touch", action="store_true")
    parser.add_argument("--relink", type=Path, nargs=2, default=[])
    parser.add_argument("--hang", choices=HANGING)
    options = parser.parse_args()
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return MAY_NOT_MOUNT
    if not mount(device, options.place):
        return MAY_NOT_MOUNT

    def unmount(_signal: int, _frame: FrameType | None) -> None:
        ctypes.CDLL(None).umount2(os.fsencode(options.place), MNT_DETACH)
        os._exit(0)

    signal.signal(signal.SIGTERM, unmount)
    print("ready", flush=True)
    file = FailingFile(options.backing, options.fail_from, options.end_at, options.touch, options.relink)
    serve(device, file, NO_REPLY | {HANGING[options.hang]} if options.hang else NO_REPLY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
