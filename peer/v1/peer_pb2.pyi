from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODE_UNSPECIFIED: _ClassVar[Code]
    CODE_OK: _ClassVar[Code]
    CODE_PROTOCOL: _ClassVar[Code]
    CODE_RUN: _ClassVar[Code]
    CODE_ROSTER: _ClassVar[Code]
    CODE_LAYOUT: _ClassVar[Code]
    CODE_VALIDATION: _ClassVar[Code]
    CODE_IDENTITY: _ClassVar[Code]
    CODE_NOT_A_NEIGHBOR: _ClassVar[Code]
    CODE_MALFORMED: _ClassVar[Code]
    CODE_STALE: _ClassVar[Code]
    CODE_AHEAD: _ClassVar[Code]
    CODE_DUPLICATE: _ClassVar[Code]
    CODE_KIND: _ClassVar[Code]
    CODE_BUSY: _ClassVar[Code]
    CODE_STALLED: _ClassVar[Code]
    CODE_STOPPING: _ClassVar[Code]
    CODE_NOT_READY: _ClassVar[Code]
    CODE_INCARNATION: _ClassVar[Code]
    CODE_NOT_A_MEMBER: _ClassVar[Code]
    CODE_START: _ClassVar[Code]
    CODE_INPUTS: _ClassVar[Code]
    CODE_DIFFERENT: _ClassVar[Code]

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SAY: _ClassVar[Role]
    ROLE_QUESTION: _ClassVar[Role]
    ROLE_ANSWER: _ClassVar[Role]
    ROLE_MIX: _ClassVar[Role]
CODE_UNSPECIFIED: Code
CODE_OK: Code
CODE_PROTOCOL: Code
CODE_RUN: Code
CODE_ROSTER: Code
CODE_LAYOUT: Code
CODE_VALIDATION: Code
CODE_IDENTITY: Code
CODE_NOT_A_NEIGHBOR: Code
CODE_MALFORMED: Code
CODE_STALE: Code
CODE_AHEAD: Code
CODE_DUPLICATE: Code
CODE_KIND: Code
CODE_BUSY: Code
CODE_STALLED: Code
CODE_STOPPING: Code
CODE_NOT_READY: Code
CODE_INCARNATION: Code
CODE_NOT_A_MEMBER: Code
CODE_START: Code
CODE_INPUTS: Code
CODE_DIFFERENT: Code
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT16: DType
ROLE_UNSPECIFIED: Role
ROLE_SAY: Role
ROLE_QUESTION: Role
ROLE_ANSWER: Role
ROLE_MIX: Role
SENTENCE_FIELD_NUMBER: _ClassVar[int]
sentence: _descriptor.FieldDescriptor

class Proof(_message.Message):
    __slots__ = ("spki", "signature")
    SPKI_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    spki: bytes
    signature: bytes
    def __init__(self, spki: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("protocol", "run", "sender", "receiver", "incarnation", "sequence", "round", "phase", "role", "kind", "layout", "parts", "dtype", "bytes", "heard", "withheld", "statements", "note")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: str
    sender: str
    receiver: str
    incarnation: int
    sequence: int
    round: int
    phase: int
    role: Role
    kind: str
    layout: bytes
    parts: int
    dtype: DType
    bytes: int
    heard: _containers.RepeatedScalarFieldContainer[str]
    withheld: bool
    statements: _containers.RepeatedCompositeFieldContainer[Statement]
    note: bytes
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[str] = ..., sender: _Optional[str] = ..., receiver: _Optional[str] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., round: _Optional[int] = ..., phase: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., kind: _Optional[str] = ..., layout: _Optional[bytes] = ..., parts: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., bytes: _Optional[int] = ..., heard: _Optional[_Iterable[str]] = ..., withheld: _Optional[bool] = ..., statements: _Optional[_Iterable[_Union[Statement, _Mapping]]] = ..., note: _Optional[bytes] = ...) -> None: ...

class Trailer(_message.Message):
    __slots__ = ("bytes", "digest", "signature")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    digest: bytes
    signature: bytes
    def __init__(self, bytes: _Optional[int] = ..., digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("sender", "incarnation", "round", "phase", "role", "digest", "signature")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sender: str
    incarnation: int
    round: int
    phase: int
    role: Role
    digest: bytes
    signature: bytes
    def __init__(self, sender: _Optional[str] = ..., incarnation: _Optional[int] = ..., round: _Optional[int] = ..., phase: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("code", "detail")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    code: Code
    detail: str
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class SignedHead(_message.Message):
    __slots__ = ("sequence", "digest", "label", "signature")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    digest: bytes
    label: bytes
    signature: bytes
    def __init__(self, sequence: _Optional[int] = ..., digest: _Optional[bytes] = ..., label: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "run", "roster", "sender", "receiver", "incarnation", "nonce", "round", "from_round", "head", "version", "propose", "order", "digests", "own_code")
    class DigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    OWN_CODE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: str
    roster: int
    sender: str
    receiver: str
    incarnation: int
    nonce: bytes
    round: int
    from_round: int
    head: SignedHead
    version: str
    propose: bool
    order: int
    digests: _containers.ScalarMap[str, bytes]
    own_code: bytes
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[str] = ..., roster: _Optional[int] = ..., sender: _Optional[str] = ..., receiver: _Optional[str] = ..., incarnation: _Optional[int] = ..., nonce: _Optional[bytes] = ..., round: _Optional[int] = ..., from_round: _Optional[int] = ..., head: _Optional[_Union[SignedHead, _Mapping]] = ..., version: _Optional[str] = ..., propose: _Optional[bool] = ..., order: _Optional[int] = ..., digests: _Optional[_Mapping[str, bytes]] = ..., own_code: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("code", "detail", "incarnation", "spki", "signature", "round", "from_round", "head", "remembered", "version", "order", "unreached")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SPKI_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_FIELD_NUMBER: _ClassVar[int]
    code: Code
    detail: str
    incarnation: int
    spki: bytes
    signature: bytes
    round: int
    from_round: int
    head: SignedHead
    remembered: SignedHead
    version: str
    order: int
    unreached: str
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., detail: _Optional[str] = ..., incarnation: _Optional[int] = ..., spki: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., round: _Optional[int] = ..., from_round: _Optional[int] = ..., head: _Optional[_Union[SignedHead, _Mapping]] = ..., remembered: _Optional[_Union[SignedHead, _Mapping]] = ..., version: _Optional[str] = ..., order: _Optional[int] = ..., unreached: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("run", "sender", "incarnation", "round", "phase", "progress", "waiting_for", "live", "head", "idle_ms", "order", "unreached")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: str
    incarnation: int
    round: int
    phase: int
    progress: int
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    live: _containers.RepeatedScalarFieldContainer[str]
    head: SignedHead
    idle_ms: int
    order: int
    unreached: str
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[str] = ..., incarnation: _Optional[int] = ..., round: _Optional[int] = ..., phase: _Optional[int] = ..., progress: _Optional[int] = ..., waiting_for: _Optional[_Iterable[str]] = ..., live: _Optional[_Iterable[str]] = ..., head: _Optional[_Union[SignedHead, _Mapping]] = ..., idle_ms: _Optional[int] = ..., order: _Optional[int] = ..., unreached: _Optional[str] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("run", "sender", "incarnation", "finished")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: str
    incarnation: int
    finished: bool
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[str] = ..., incarnation: _Optional[int] = ..., finished: _Optional[bool] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("member", "issued", "addresses", "spki", "signature")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SPKI_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    member: str
    issued: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    spki: bytes
    signature: bytes
    def __init__(self, member: _Optional[str] = ..., issued: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., spki: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Peers(_message.Message):
    __slots__ = ("run", "sender", "known", "wanted")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    run: str
    sender: str
    known: _containers.RepeatedCompositeFieldContainer[Announcement]
    wanted: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[str] = ..., sender: _Optional[str] = ..., known: _Optional[_Iterable[_Union[Announcement, _Mapping]]] = ..., wanted: _Optional[_Iterable[str]] = ...) -> None: ...
