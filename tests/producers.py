"""Arrays as frameworks offer them, over memory of the emulated device: for tests without any framework or GPU."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drvtopk.driver import Driver
from drvtopk.interop import arrays, dlpack

TYPESTRS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<V2", "int32": "<i4", "int64": "<i8", "uint8": "|u1"}


class Memory:
    """Device memory with a shape, and whatever protocols a subclass adds."""

    def __init__(
        self,
        driver: Driver,
        content: npt.NDArray[Any],
        *,
        dtype: str = "",
        device: int = 0,
        read_only: bool = False,
        address: int | None = None,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.content = np.ascontiguousarray(content)
        self.name = dtype or str(content.dtype)
        self.shape, self.itemsize = content.shape, content.itemsize
        self.steps = strides or dlpack.compact(content.shape)
        self.at = driver.mem_alloc(self.content.nbytes) if address is None else address
        self.ordinal, self.read_only = device, read_only
        self.asked: list[dict[str, Any]] = []
        if address is None:
            driver.copy_to_device(self.at, self.content)
        self.driver = driver

    def fetched(self) -> npt.NDArray[Any]:
        found = np.empty_like(self.content)
        self.driver.copy_to_host(found, self.at)
        return found


class Interface(Memory):
    """Speaks `__cuda_array_interface__` version 3 only."""

    stream: int | None = None
    mask: object = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        item = self.content.itemsize
        return {
            "shape": self.shape,
            "typestr": TYPESTRS[self.name],
            "data": (self.at, self.read_only),
            "strides": tuple(item * step for step in self.steps),
            "version": 3,
            "stream": self.stream,
            "mask": self.mask,
        }


class Versioned(Memory):
    """Speaks DLPack 1."""

    kind = dlpack.CUDA
    versioned = True
    compact_strides = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.ordinal

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        self.asked.append({"stream": stream, "max_version": max_version})
        return self._capsule(self.versioned)

    def _capsule(self, versioned: bool) -> Any:
        tensor = dlpack.Tensor(
            address=self.at,
            shape=self.shape,
            strides=None if self.compact_strides else self.steps,
            dtype=self.name,
            bits=8 * self.itemsize,
            device_type=self.kind,
            device=self.ordinal,
            read_only=self.read_only,
        )
        return dlpack.capsule_of(tensor, self, versioned=versioned)


class Legacy(Versioned):
    """Speaks DLPack from before versions: no `max_version`, no read-only flag."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:  # type: ignore[override]
        self.asked.append({"stream": stream})
        return self._capsule(False)


class Tensor(Memory):
    """What is asked of a torch tensor; its module is put into sys.modules by `frameworks`."""

    is_cuda, is_sparse, is_quantized, layout = True, False, False, "strided"

    @property
    def dtype(self) -> str:
        return f"torch.{self.name}"

    @property
    def device(self) -> str:
        return f"cuda:{self.ordinal}" if self.is_cuda else "cpu"

    def data_ptr(self) -> int:
        return self.at

    def stride(self) -> tuple[int, ...]:
        return self.steps

    def element_size(self) -> int:
        return int(self.content.itemsize)

    def get_device(self) -> int:
        return self.ordinal

    def is_complex(self) -> bool:
        return False

    def is_neg(self) -> bool:
        return False

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody needs an export of this")


class CupyArray(Memory):
    """What is asked of a CuPy array."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.at)

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=self.ordinal)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.content.dtype

    @property
    def __cuda_array_interface__(self) -> Any:
        raise AssertionError("nobody needs an export of this")

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.content.itemsize * step for step in self.steps)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody needs an export of this")


def frameworks(monkeypatch: pytest.MonkeyPatch, stream: int) -> None:
    """Makes `Tensor` and `CupyArray` look like torch's and CuPy's, with this stream current in both."""
    import sys

    torch: Any = ModuleType("torch")
    torch.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=stream))
    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=stream))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for kind, name in ((Tensor, "torch"), (CupyArray, "cupy")):
        monkeypatch.setattr(kind, "__module__", name)
    arrays._protocols.clear()
