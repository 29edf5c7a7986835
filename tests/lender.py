"""Another array library, in ctypes: lends memory by DLPack, honestly or not, and looks into capsules it is given."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np

CPU, CUDA = (1, 0), (2, 0)
_API = ctypes.pythonapi
_API.PyCapsule_New.restype = ctypes.py_object
_API.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_API.PyCapsule_GetName.restype = ctypes.c_char_p
_API.PyCapsule_GetName.argtypes = [ctypes.py_object]
_API.PyCapsule_GetPointer.restype = ctypes.c_void_p
_API.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_API.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]  # fmt: skip


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Legacy(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("user", ctypes.c_void_p), ("deleter", DELETER)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("user", ctypes.c_void_p), ("deleter", DELETER),
        ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


_CODES = {"f": 2, "i": 0, "u": 1, "c": 5, "b": 6}


class Lender:
    """Lends `array`. changes: fields of the structure (data, code, shape, ...) that are to be other than they should.

    given_back: how often the deleter was called. address: of device memory, in place of the array's own.
    """

    def __init__(self, array, *, device=CPU, versioned=True, address=None, name=None, answer=None, **changes):
        self.array, self.device, self.versioned, self.name, self.answer = array, device, versioned, name, answer
        self.given_back, self.lent, self.streams, self._kept = 0, 0, [], []
        self.address, self.changes = address or array.ctypes.data, changes
        self.on_lend = self.on_return = lambda *_: None

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append(stream)
        self.on_lend(stream)
        if self.answer is not None:
            return self.answer()
        managed = (Versioned if self.versioned else Legacy)()
        sizes = (ctypes.c_int64 * 8)(*self.array.shape)
        steps = (ctypes.c_int64 * 8)(*[s // self.array.itemsize for s in self.array.strides])
        tensor = {
            "data": self.address, "type": self.device[0], "id": self.device[1], "ndim": self.array.ndim,
            "code": _CODES[self.array.dtype.kind], "bits": 8 * self.array.itemsize, "lanes": 1,
            "shape": sizes, "strides": steps, "offset": 0,
        }  # fmt: skip
        head = {"major": 1, "minor": 0, "flags": 0} if self.versioned else {}
        for key, value in {**tensor, **head, **self.changes}.items():
            if key in ("shape", "strides") and value is not None and not isinstance(value, ctypes.Array):
                value = (ctypes.c_int64 * 8)(*value)
            setattr(managed.tensor if key in tensor else managed, key, value)
        managed.deleter = DELETER(self._end)
        self._kept.append((managed, sizes, steps))
        self.lent += 1
        name = self.name or (b"dltensor_versioned" if self.versioned else b"dltensor")
        self._kept.append(name)
        return _API.PyCapsule_New(ctypes.addressof(managed), name, None)

    def _end(self, _):
        self.given_back += 1
        self.on_return()


def name_of(capsule) -> str:
    return _API.PyCapsule_GetName(capsule).decode()


def look(capsule) -> SimpleNamespace:
    """What it holds, without taking it."""
    name = name_of(capsule)
    kind = Versioned if name == "dltensor_versioned" else Legacy
    managed = kind.from_address(_API.PyCapsule_GetPointer(capsule, name.encode()))
    t = managed.tensor
    return SimpleNamespace(
        managed=managed, name=name, data=t.data, device=(t.type, t.id), shape=tuple(t.shape[: t.ndim]),
        strides=tuple(t.strides[: t.ndim]), dtype=(t.code, t.bits, t.lanes), offset=t.offset,
        flags=getattr(managed, "flags", None), version=getattr(managed, "major", None),
    )  # fmt: skip


_USED: list[bytes] = []


def take(capsule) -> SimpleNamespace:
    """As a consumer does: renamed; whoever calls `.managed.deleter(address)` gives it back."""
    held = look(capsule)
    _USED.append(b"used_" + held.name.encode())
    _API.PyCapsule_SetName(capsule, _USED[-1])
    held.give_back = lambda: held.managed.deleter(ctypes.addressof(held.managed))
    return held


class Gpu:
    """A library on the emulated device, with a stream of its own on which all it does is only queued."""

    def __init__(self):
        library = ctypes.CDLL(sys.modules["ipvg._cuda"].__file__)
        for name in ("stream", "memory", "pinned"):
            getattr(library, f"consumer_{name}").restype = ctypes.c_void_p
        self._library, self.stream = library, library.consumer_stream()

    def _call(self, name, *arguments):
        wide = [ctypes.c_size_t(a) if isinstance(a, int) else a for a in arguments]
        assert getattr(self._library, f"consumer_{name}")(*wide) == 0

    def memory(self, bytes_: int) -> int:
        return self._library.consumer_memory(ctypes.c_size_t(bytes_))

    def pinned(self, shape, dtype=np.float32) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_char * size).from_address(self._library.consumer_pinned(ctypes.c_size_t(size)))
        return np.frombuffer(memory, dtype).reshape(shape)

    def write(self, address: int, values: np.ndarray) -> None:
        staged = self.pinned(values.shape, values.dtype)
        staged[...] = values
        self._call("write", self.stream, address, staged.ctypes.data, staged.nbytes)

    def read(self, address: int, shape) -> np.ndarray:
        """There after `wait`."""
        to = self.pinned(shape)
        to[...] = np.nan
        self._call("read", self.stream, to.ctypes.data, address, to.nbytes)
        return to

    def wait(self) -> None:
        self._call("wait", self.stream)

    def order(self, later: int, earlier: int) -> None:
        self._call("order", later, earlier)
