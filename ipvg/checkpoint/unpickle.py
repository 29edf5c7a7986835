"""A pickle interpreter that builds state dicts and nothing else.

It knows the opcodes that torch.save uses for tensors, runs no code, and calls only the three rebuild functions below.
A global is refused when it is named, before anything could be done with it. Every opcode takes at least one byte and
makes at most one object, so work and memory are bounded by the size of the pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import unpack

from .._core import FormatError
from .entry import MAX_DIMS, printable

STORAGES = {
    "FloatStorage": "float32",
    "BFloat16Storage": "bfloat16",
    "HalfStorage": "float16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}" for name in STORAGES),
}
_MARK = object()


@dataclass(frozen=True, eq=False)
class Global:
    """An allowed name; it stands for a function or a class and is neither."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """`count` elements in the record data/<key>."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage; offset and strides in elements. Its numbers are integers, otherwise unchecked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader:
    def __init__(self, data: bytes, where: str):
        self.data, self.where, self.at, self.op_at = data, where, 0, 0
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def fail(self, text: str):
        raise FormatError(f"{self.where}: pickle byte {self.op_at}: {text}")

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            self.fail("the pickle ends early: is the file truncated?")
        self.at += n
        return self.data[self.at - n : self.at]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            self.fail("a name that does not end")
        text = self.data[self.at : end].decode("latin-1")
        self.at = end + 1
        return text

    def pop(self):
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("the stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        self.fail("no mark on the stack")

    def top(self, kind: type, what: str):
        if not self.stack or not isinstance(self.stack[-1], kind):
            self.fail(f"expected {what} on the stack")
        return self.stack[-1]


def loads(data: bytes, where: str) -> object:
    """The object that `data` describes, made of dict, list, tuple, str, int, float, bool, None, Tensor, Storage and
    Global. `where` goes in front of errors. Raises FormatError for anything else."""
    r = _Reader(data, where)
    while True:
        r.op_at = r.at
        op = r.take(1)
        if op == b".":
            out = r.pop()
            if r.stack:
                r.fail("the pickle ends with a full stack")
            return out
        action = _ACTIONS.get(op)
        if action is None:
            r.fail(f"opcode 0x{op[0]:02x} has no place in a state dict")
        action(r)


def _proto(r: _Reader) -> None:
    if r.take(1)[0] != 2:
        r.fail(f"pickle protocol {r.data[r.at - 1]}; torch.save writes protocol 2")


def _global(r: _Reader) -> None:
    module, name = r.line(), r.line()
    if f"{module} {name}" not in _ALLOWED:
        r.fail(f"refused: it names {printable(f'{module}.{name}')}, and a checkpoint needs no such thing")
    r.stack.append(Global(f"{module}.{name}"))


def _persistent(r: _Reader) -> None:
    t = r.pop()
    if not isinstance(t, tuple) or len(t) != 5 or t[0] != "storage":
        r.fail("not a storage of torch's zip format")
    _, kind, key, _, count = t  # the fourth is a device name: ignored
    dtype = STORAGES.get(kind.name.removeprefix("torch.")) if isinstance(kind, Global) else None
    if dtype is None:
        r.fail("a storage of unknown type")
    if not isinstance(key, str) or not key.isascii() or not key.replace("_", "").isalnum() or len(key) > 64:
        r.fail(f"a storage with the key {printable(key, 64)}")
    if type(count) is not int or count < 0:
        r.fail("a storage whose count is not a natural number")
    r.stack.append(Storage(dtype, key, count))


def _reduce(r: _Reader) -> None:
    args, function = r.pop(), r.pop()
    if not isinstance(function, Global) or not isinstance(args, tuple):
        r.fail("a call of something that is no known function")
    if function.name == "collections.OrderedDict" and not args:
        r.stack.append({})
    elif function.name == "torch._utils._rebuild_tensor_v2" and len(args) in (6, 7):
        r.stack.append(_tensor(r, *args[:4]))
    elif function.name == "torch._utils._rebuild_parameter" and len(args) == 3 and isinstance(args[0], Tensor):
        r.stack.append(args[0])
    else:
        r.fail(f"{function.name} with {len(args)} arguments is not how torch.save calls it")


def _tensor(r: _Reader, storage, offset, shape, strides) -> Tensor:
    if not isinstance(storage, Storage) or type(offset) is not int:
        r.fail("a tensor without storage or offset")
    for numbers in (shape, strides):
        if not isinstance(numbers, tuple) or len(numbers) > MAX_DIMS or not all(type(n) is int for n in numbers):
            r.fail(f"a tensor whose shape or strides are not up to {MAX_DIMS} integers")
    if len(shape) != len(strides):
        r.fail("a tensor with more sizes than strides, or fewer")
    return Tensor(storage, offset, shape, strides)


def _build(r: _Reader) -> None:
    r.pop()  # the attributes, such as _metadata: nothing here has any
    r.top(dict, "an OrderedDict to set attributes of")


def _set_items(r: _Reader, items: list) -> None:
    target = r.top(dict, "a dict")
    if len(items) % 2:
        r.fail("a key without value")
    for key, value in zip(items[::2], items[1::2]):
        # Only these: hashing a tuple of tuples of tuples... could take for ever.
        if type(key) not in (str, int):
            r.fail("a dict key that is neither text nor integer")
        if key in target:
            r.fail(f"{printable(key)} is there twice")
        target[key] = value


def _append(r: _Reader, items: list) -> None:
    r.top(list, "a list").extend(items)


def _put(r: _Reader, slot: int) -> None:
    if not r.stack or r.stack[-1] is _MARK:
        r.fail("nothing to remember")
    r.memo[slot] = r.stack[-1]


def _get(r: _Reader, slot: int) -> None:
    if slot not in r.memo:
        r.fail(f"memo slot {slot} was never set")
    r.stack.append(r.memo[slot])


def _tuple(r: _Reader, n: int) -> None:
    items = [r.pop() for _ in range(n)]
    r.stack.append(tuple(reversed(items)))


def _text(r: _Reader) -> None:
    try:
        r.stack.append(r.take(_u32(r)).decode("utf-8"))
    except UnicodeDecodeError:
        r.fail("a text that is not UTF-8")


def _u32(r: _Reader) -> int:
    return int.from_bytes(r.take(4), "little")


def _push(value):
    return lambda r: r.stack.append(value)


_ACTIONS = {
    b"\x80": _proto,
    b"}": lambda r: r.stack.append({}),
    b"]": lambda r: r.stack.append([]),
    b")": _push(()),
    b"(": _push(_MARK),
    b"N": _push(None),
    b"\x88": _push(True),
    b"\x89": _push(False),
    b"c": _global,
    b"R": _reduce,
    b"b": _build,
    b"Q": _persistent,
    b"X": _text,
    b"J": lambda r: r.stack.append(int.from_bytes(r.take(4), "little", signed=True)),
    b"K": lambda r: r.stack.append(r.take(1)[0]),
    b"M": lambda r: r.stack.append(int.from_bytes(r.take(2), "little")),
    b"\x8a": lambda r: r.stack.append(int.from_bytes(r.take(r.take(1)[0]), "little", signed=True)),
    b"G": lambda r: r.stack.append(unpack(">d", r.take(8))[0]),
    b"t": lambda r: r.stack.append(tuple(r.pop_to_mark())),
    b"\x85": lambda r: _tuple(r, 1),
    b"\x86": lambda r: _tuple(r, 2),
    b"\x87": lambda r: _tuple(r, 3),
    b"q": lambda r: _put(r, r.take(1)[0]),
    b"r": lambda r: _put(r, _u32(r)),
    b"h": lambda r: _get(r, r.take(1)[0]),
    b"j": lambda r: _get(r, _u32(r)),
    b"s": lambda r: _set_items(r, [r.pop(), r.pop()][::-1]),
    b"u": lambda r: _set_items(r, r.pop_to_mark()),
    b"a": lambda r: _append(r, [r.pop()]),
    b"e": lambda r: _append(r, r.pop_to_mark()),
}
