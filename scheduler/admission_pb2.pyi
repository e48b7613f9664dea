from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Place(_message.Message):
    __slots__ = ("stream", "replica")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    stream: str
    replica: str
    def __init__(self, stream: _Optional[str] = ..., replica: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("gateway", "held")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    held: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, gateway: _Optional[str] = ..., held: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("place", "broken")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    place: Place
    broken: bool
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ..., broken: _Optional[bool] = ...) -> None: ...

class GivenUp(_message.Message):
    __slots__ = ("stream", "kept")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    stream: str
    kept: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stream: _Optional[str] = ..., kept: _Optional[_Iterable[str]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stream", "input_tokens", "output_tokens")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    input_tokens: int
    output_tokens: int
    def __init__(self, stream: _Optional[str] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class GatewayNews(_message.Message):
    __slots__ = ("hello", "finished", "given_up", "progress")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    finished: Finished
    given_up: GivenUp
    progress: Progress
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., given_up: _Optional[_Union[GivenUp, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class Lost(_message.Message):
    __slots__ = ("place", "reason")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    place: Place
    reason: str
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class RunningModel(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("running", "failed", "can_serve")
    class FailedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CAN_SERVE_FIELD_NUMBER: _ClassVar[int]
    running: _containers.RepeatedCompositeFieldContainer[RunningModel]
    failed: _containers.ScalarMap[str, str]
    can_serve: bool
    def __init__(self, running: _Optional[_Iterable[_Union[RunningModel, _Mapping]]] = ..., failed: _Optional[_Mapping[str, str]] = ..., can_serve: _Optional[bool] = ...) -> None: ...

class LeaderNews(_message.Message):
    __slots__ = ("lost", "picture")
    LOST_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    lost: Lost
    picture: Picture
    def __init__(self, lost: _Optional[_Union[Lost, _Mapping]] = ..., picture: _Optional[_Union[Picture, _Mapping]] = ...) -> None: ...

class Asker(_message.Message):
    __slots__ = ("tenant", "models", "weight")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    models: _containers.RepeatedScalarFieldContainer[str]
    weight: int
    def __init__(self, tenant: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., weight: _Optional[int] = ...) -> None: ...

class Trouble(_message.Message):
    __slots__ = ("kind", "code", "message", "retry_after_s")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    kind: str
    code: str
    message: str
    retry_after_s: float
    def __init__(self, kind: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class AdmitRequest(_message.Message):
    __slots__ = ("gateway", "stream", "model", "version", "timeout_s", "avoid", "caller", "priority")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    AVOID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    stream: str
    model: str
    version: str
    timeout_s: float
    avoid: _containers.RepeatedScalarFieldContainer[str]
    caller: Asker
    priority: int
    def __init__(self, gateway: _Optional[str] = ..., stream: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., timeout_s: _Optional[float] = ..., avoid: _Optional[_Iterable[str]] = ..., caller: _Optional[_Union[Asker, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class AdmitReply(_message.Message):
    __slots__ = ("assignment", "trouble")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    assignment: str
    trouble: Trouble
    def __init__(self, assignment: _Optional[str] = ..., trouble: _Optional[_Union[Trouble, _Mapping]] = ...) -> None: ...

class OutlookRequest(_message.Message):
    __slots__ = ("model", "caller", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    caller: Asker
    priority: int
    def __init__(self, model: _Optional[str] = ..., caller: _Optional[_Union[Asker, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class OutlookReply(_message.Message):
    __slots__ = ("outlook", "trouble")
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    outlook: str
    trouble: Trouble
    def __init__(self, outlook: _Optional[str] = ..., trouble: _Optional[_Union[Trouble, _Mapping]] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("model", "timeout_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_s: float
    def __init__(self, model: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ModelReply(_message.Message):
    __slots__ = ("trouble",)
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    trouble: Trouble
    def __init__(self, trouble: _Optional[_Union[Trouble, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: str
    def __init__(self, status: _Optional[str] = ...) -> None: ...
