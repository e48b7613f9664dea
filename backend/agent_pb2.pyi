from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOADING: _ClassVar[Phase]
    LOADED: _ClassVar[Phase]
    READY: _ClassVar[Phase]
    PARKED: _ClassVar[Phase]
LOADING: Phase
LOADED: Phase
READY: Phase
PARKED: Phase

class Announcement(_message.Message):
    __slots__ = ("node", "triton", "agent")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TRITON_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    node: str
    triton: str
    agent: str
    def __init__(self, node: _Optional[str] = ..., triton: _Optional[str] = ..., agent: _Optional[str] = ...) -> None: ...

class AnnouncementReply(_message.Message):
    __slots__ = ("heartbeat_s",)
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    heartbeat_s: float
    def __init__(self, heartbeat_s: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeState(_message.Message):
    __slots__ = ("node", "version", "highest_epoch", "device_memory_bytes", "device_granted_bytes", "dram_bytes", "dram_leased_bytes", "ssd_bytes_per_second", "replicas", "images", "device_holds_weights", "workers_ready", "devices", "remote_bytes_per_second", "copies", "transfers")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_GRANTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRAM_LEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SSD_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_HOLDS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_READY_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    REMOTE_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    node: str
    version: int
    highest_epoch: int
    device_memory_bytes: int
    device_granted_bytes: int
    dram_bytes: int
    dram_leased_bytes: int
    ssd_bytes_per_second: float
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    device_holds_weights: bool
    workers_ready: bool
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    remote_bytes_per_second: float
    copies: _containers.RepeatedScalarFieldContainer[str]
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    def __init__(self, node: _Optional[str] = ..., version: _Optional[int] = ..., highest_epoch: _Optional[int] = ..., device_memory_bytes: _Optional[int] = ..., device_granted_bytes: _Optional[int] = ..., dram_bytes: _Optional[int] = ..., dram_leased_bytes: _Optional[int] = ..., ssd_bytes_per_second: _Optional[float] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., device_holds_weights: _Optional[bool] = ..., workers_ready: _Optional[bool] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., remote_bytes_per_second: _Optional[float] = ..., copies: _Optional[_Iterable[str]] = ..., transfers: _Optional[_Iterable[_Union[Transfer, _Mapping]]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "name", "memory_bytes", "granted_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRANTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    memory_bytes: int
    granted_bytes: int
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., granted_bytes: _Optional[int] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("checkpoint", "bytes", "read_bytes")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    bytes: int
    read_bytes: int
    def __init__(self, checkpoint: _Optional[str] = ..., bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("id", "model", "phase", "device_bytes", "worker_pid", "stub_pid", "stub_private_bytes", "exactness", "devices")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_PID_FIELD_NUMBER: _ClassVar[int]
    STUB_PID_FIELD_NUMBER: _ClassVar[int]
    STUB_PRIVATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    phase: Phase
    device_bytes: int
    worker_pid: int
    stub_pid: int
    stub_private_bytes: int
    exactness: Exactness
    devices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., device_bytes: _Optional[int] = ..., worker_pid: _Optional[int] = ..., stub_pid: _Optional[int] = ..., stub_private_bytes: _Optional[int] = ..., exactness: _Optional[_Union[Exactness, _Mapping]] = ..., devices: _Optional[_Iterable[int]] = ...) -> None: ...

class Exactness(_message.Message):
    __slots__ = ("kind", "reason", "contract")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    reason: str
    contract: str
    def __init__(self, kind: _Optional[str] = ..., reason: _Optional[str] = ..., contract: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("checkpoint", "bytes", "leased", "pinned")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    bytes: int
    leased: bool
    pinned: bool
    def __init__(self, checkpoint: _Optional[str] = ..., bytes: _Optional[int] = ..., leased: _Optional[bool] = ..., pinned: _Optional[bool] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("epoch", "replica", "model", "parameters", "parked")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    replica: str
    model: str
    parameters: _containers.ScalarMap[str, str]
    parked: str
    def __init__(self, epoch: _Optional[int] = ..., replica: _Optional[str] = ..., model: _Optional[str] = ..., parameters: _Optional[_Mapping[str, str]] = ..., parked: _Optional[str] = ...) -> None: ...

class StartReply(_message.Message):
    __slots__ = ("version", "tier", "bytes", "spans", "stub_waited_from_s", "exactness")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    STUB_WAITED_FROM_S_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_FIELD_NUMBER: _ClassVar[int]
    version: int
    tier: str
    bytes: int
    spans: _containers.RepeatedCompositeFieldContainer[StartSpan]
    stub_waited_from_s: float
    exactness: Exactness
    def __init__(self, version: _Optional[int] = ..., tier: _Optional[str] = ..., bytes: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[StartSpan, _Mapping]]] = ..., stub_waited_from_s: _Optional[float] = ..., exactness: _Optional[_Union[Exactness, _Mapping]] = ...) -> None: ...

class StartSpan(_message.Message):
    __slots__ = ("name", "start_s", "end_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    start_s: float
    end_s: float
    def __init__(self, name: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("epoch", "replica")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    replica: str
    def __init__(self, epoch: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class ParkRequest(_message.Message):
    __slots__ = ("epoch", "replica")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    replica: str
    def __init__(self, epoch: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...

class ParkReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[str]] = ...) -> None: ...

class MeasureReply(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class PrefetchRequest(_message.Message):
    __slots__ = ("epoch", "checkpoint")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    checkpoint: str
    def __init__(self, epoch: _Optional[int] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class PrefetchReply(_message.Message):
    __slots__ = ("bytes", "read_s")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    read_s: float
    def __init__(self, bytes: _Optional[int] = ..., read_s: _Optional[float] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("epoch", "checkpoint")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    checkpoint: str
    def __init__(self, epoch: _Optional[int] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class EvictReply(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: int
    def __init__(self, images: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("epoch", "checkpoint", "pinned")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    checkpoint: str
    pinned: bool
    def __init__(self, epoch: _Optional[int] = ..., checkpoint: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
