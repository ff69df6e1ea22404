"""Reads the arrays in Planetoid's pickles without making any object but those of this module.

A pickle names the classes and functions that it is made of, and whoever wrote it can name any. Here a name is looked
up in a short list of stand-ins, which keep what they are given, and everything else is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

__all__ = ["read_pickle"]

_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class _RefusedError(Exception):
    """What is in the file is not of the format."""


class _Type:
    """In place of `numpy.dtype`: the name of a type of numbers."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any]:
        if self.code not in _KINDS:
            raise _RefusedError(f"an array of type {self.code!r}")
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """In place of `numpy.ndarray`: its shape, type and bytes."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def numpy(self) -> NDArray[Any]:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise _RefusedError("an array without its state")
        _, shape, kind, fortran, data = self.state
        # Python 2's strings come as text, each byte a character.
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(kind, _Type) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise _RefusedError("an array of something else than numbers")
        try:
            flat = np.frombuffer(raw, kind.numpy())
            return flat.reshape(shape, order="F" if fortran else "C").astype(kind.numpy().newbyteorder("="))
        except (TypeError, ValueError) as error:
            raise _RefusedError(f"an array of shape {shape} in {len(raw)} bytes") from error


class _Matrix:
    """In place of SciPy's CSR matrix: its attributes."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def scipy(self) -> scipy.sparse.csr_array:
        import scipy.sparse

        parts = self.state if isinstance(self.state, dict) else {}
        shape = parts.get("_shape", parts.get("shape"))
        arrays = [parts.get(name) for name in ("data", "indices", "indptr")]
        if not isinstance(shape, tuple) or not all(isinstance(array, _Array) for array in arrays):
            raise _RefusedError("a sparse matrix without its arrays")
        data, indices, indptr = (array.numpy() for array in arrays if isinstance(array, _Array))
        try:
            made = scipy.sparse.csr_array((data, indices, indptr), shape=shape)
            made.check_format(full_check=True)
        except (TypeError, ValueError, IndexError) as error:
            raise _RefusedError(f"a sparse matrix whose arrays do not fit: {error}") from error
        return made


class _Function:
    """A function that a pickle may call and cannot change: of a plain one it could set the attributes."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a function with a state")


def _blank(kind: Any, *_: Any) -> Any:
    """In place of the functions that make an object without its state."""
    if kind not in (_Array, _Matrix):
        raise _RefusedError(f"an object of {kind!r}")
    return kind()


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """In place of `codecs.encode`, by which Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError(f"text in {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": _Function(_blank),
    "numpy._core.multiarray._reconstruct": _Function(_blank),
    "scipy.sparse.csr.csr_matrix": _Matrix,
    "scipy.sparse._csr.csr_matrix": _Matrix,
    "copy_reg._reconstructor": _Function(_blank),
    "copyreg._reconstructor": _Function(_blank),
    "collections.defaultdict": _Function(_dict),
    "_codecs.encode": _Function(_bytes),
    # Only handed on, to the stand-ins, which do not look at them.
    "__builtin__.object": None,
    "builtins.object": None,
    "__builtin__.list": None,
    "builtins.list": None,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STAND_INS:
            raise _RefusedError(f"{full}, which the format does not have")
        return _STAND_INS[full]

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002
        raise _RefusedError("something that lies outside the file")


def read_pickle(file: Path) -> Any:
    """A file's array, sparse matrix or dict of lists.

    Raises:
        DataError: The file is missing, damaged, or holds anything else. Nothing of it was run.
    """
    try:
        with file.open("rb") as stream:
            made = _Reader(stream, encoding="latin1").load()
        if isinstance(made, _Array):
            return made.numpy()
        if isinstance(made, _Matrix):
            return made.scipy()
        if isinstance(made, dict):
            return made
        raise _RefusedError(f"a {type(made).__name__}")
    except FileNotFoundError as error:
        raise DataError(
            "there is no such file",
            where=str(file),
            hint="Name the folder with Planetoid's ind.*.x and so on",
        ) from error
    except _RefusedError as error:
        raise DataError(f"is not of Planetoid's format: it holds {error}", where=str(file)) from error
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:  # fmt: skip
        raise DataError(f"is damaged: {type(error).__name__}: {error}", where=str(file)) from error
