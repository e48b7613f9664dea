"""What can go wrong while a checkpoint is opened, read, stored or attached.

    LoaderError
    ├── CheckpointError               the files are at fault; asking again does not help
    │   ├── CheckpointNotFound        nothing loadable at that path
    │   ├── CheckpointUnreadable      the operating system refused (permissions, I/O error)
    │   ├── CheckpointTruncated       a file ends before the bytes its header promises
    │   ├── CheckpointChanged         a file was replaced or written while it was being read
    │   ├── CheckpointCorrupted       a chunk's bytes differ from those that its hash was taken of
    │   ├── ChunkHashesInvalid        the hashes beside a file are malformed or of another version of it
    │   ├── ChunkHashesMissing        there is nothing to verify a file against
    │   ├── CheckpointUnwritable      the operating system refused to write (permissions, no space left)
    │   ├── CheckpointExists          something is already where a checkpoint should be written
    │   ├── CheckpointIndexInvalid    the shard index is malformed or names files it may not name
    │   ├── NotSafetensors            the bytes are not a valid safetensors file
    │   ├── TensorNotFound            a tensor was asked for by a name that no file has
    │   ├── SliceInvalid              a slice was asked for that does not fit its tensor
    │   ├── UnsupportedDtype          valid, but this torch has no such dtype
    │   ├── RemoteUrlRefused          a URL that is malformed, unencrypted, holds credentials, or needs a store
    │   ├── RemoteDenied              the server wants other credentials
    │   ├── RemoteUnsuitable          the server cannot do what loading needs: sizes, ranges, versions
    │   └── UnsafeCheckpoint          a pickle checkpoint, which may run code when loaded
    ├── DeviceError                   a GPU or its driver refused; the message has the driver's own words
    │   ├── DeviceUnavailable         no CUDA driver, no such device, or one that cannot do what is needed
    │   └── DeviceOutOfMemory         the GPU has no memory left
    └── StoreError                    the store is at fault or busy; the files may be fine
        ├── StoreUnavailable          no store answers at that socket, or it went away
        ├── SocketUnusable            no socket can be made at that path, or something else is there
        ├── StoreFull                 leased and pinned images take the DRAM budget, or the room to describe them
        ├── BudgetTooLarge            the cgroup allows less memory than the store should take
        ├── EngineUnavailable         reads were asked for in a way that this machine forbids
        ├── PagesUnavailable          the machine has no such pages as the arena should be made of
        ├── HostNotConfigurable       a machine setting that should be changed could not be
        ├── StoreTimeout              no answer in time
        ├── StoreCancelled            the load was cancelled, by close() or by an eviction
        ├── RemoteUnavailable         the server that has the checkpoint gives no usable answer for now
        ├── StoreProtocolError        the peer sent what this version does not understand
        ├── ProcessUnwatchable        the store cannot see when this process ends
        ├── UserRefused               the store serves its own user and root alone
        ├── TooManyClients            the store has as many clients as it takes
        ├── ImageLeased               an eviction was refused because somebody uses the image
        └── ImagePinned               an eviction was refused because the image is pinned

Every message names the file, URL or socket and says what to do. No message holds a URL's query or credentials.
"""

from __future__ import annotations


class LoaderError(Exception):
    """Base of everything this package raises on purpose."""


class CheckpointError(LoaderError):
    """The checkpoint's files are at fault."""


class CheckpointNotFound(CheckpointError):
    """Nothing loadable at that path."""


class CheckpointUnreadable(CheckpointError):
    """The operating system refused to read the file."""


class CheckpointUnwritable(CheckpointError):
    """The operating system refused to write beside or for a checkpoint."""


class CheckpointExists(CheckpointError):
    """Something is already where a checkpoint should be written, or somebody is writing there."""


class CheckpointTruncated(CheckpointError):
    """A file ends before the bytes its header promises."""


class CheckpointChanged(CheckpointError):
    """A file was replaced or written while it was being read."""


class CheckpointCorrupted(CheckpointError):
    """A chunk's bytes differ from those that its hash was taken of."""


class ChunkHashesInvalid(CheckpointError):
    """The hashes beside a file are malformed or belong to another version of it."""


class ChunkHashesMissing(CheckpointError):
    """There is nothing to verify a file against."""


class CheckpointIndexInvalid(CheckpointError):
    """The shard index is malformed or names files it may not name."""


class NotSafetensors(CheckpointError):
    """The bytes are not a valid safetensors file."""


class TensorNotFound(CheckpointError):
    """A tensor was asked for by a name that no file has."""


class SliceInvalid(CheckpointError):
    """A slice was asked for that does not fit its tensor."""


class UnsupportedDtype(CheckpointError):
    """The installed torch cannot name a tensor's dtype."""


class UnsafeCheckpoint(CheckpointError):
    """A pickle checkpoint, which may run code when loaded."""


class DeviceError(LoaderError):
    """A GPU or its driver refused."""


class DeviceUnavailable(DeviceError):
    """There is no CUDA driver, no such device, or one that cannot do what is needed."""


class DeviceOutOfMemory(DeviceError):
    """The GPU has no memory left."""


class RemoteUrlRefused(CheckpointError):
    """A URL that is malformed, would go unencrypted over a network, holds credentials, or needs a store."""


class RemoteDenied(CheckpointError):
    """The server wants other credentials, or none of ours may read there."""


class RemoteUnsuitable(CheckpointError):
    """The server cannot do what loading needs: say sizes, serve ranges, tell versions apart."""


class StoreError(LoaderError):
    """The store is at fault or busy."""


class StoreUnavailable(StoreError):
    """No store answers at that socket, or it went away."""


class SocketUnusable(StoreError):
    """No socket can be made at that path, or something else is there."""


class StoreFull(StoreError):
    """What is in use takes the DRAM budget, or the room to describe it to a successor; or the machine has no memory."""


class BudgetTooLarge(StoreError):
    """The cgroup allows less memory than the store should take."""


class HostNotConfigurable(StoreError):
    """A machine setting that should be changed could not be."""


class EngineUnavailable(StoreError):
    """Reads were asked for in a way that this machine forbids."""


class PagesUnavailable(StoreError):
    """The machine has no such pages as the arena should be made of."""


class StoreTimeout(StoreError):
    """No answer in time."""


class StoreCancelled(StoreError):
    """The load was cancelled."""


class RemoteUnavailable(StoreError):
    """The server that has the checkpoint gives no usable answer for now."""


class StoreProtocolError(StoreError):
    """The peer sent what this version does not understand."""


class ProcessUnwatchable(StoreError):
    """The store cannot see when this process ends, so it gives it no leases."""


class UserRefused(StoreError):
    """The store serves its own user and root alone."""


class TooManyClients(StoreError):
    """The store has as many clients as it takes."""


class ImageLeased(StoreError):
    """An eviction was refused because somebody uses the image."""


class ImagePinned(StoreError):
    """An eviction was refused because the image is pinned."""


def error_of(name: str, message: str) -> LoaderError:
    """The error that a peer reported by its class name; an unknown name becomes a plain StoreError."""
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, LoaderError):
        return kind(message)
    return StoreError(f"{name}: {message}")
