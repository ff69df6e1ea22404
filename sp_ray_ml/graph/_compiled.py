"""What the kernels of graphs are made of: parts of their callers, types of arrays, and instructions of the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "addresses",
    "helper",
    "high_product",
    "peek",
    "prefetch",
    "read",
    "trailing_zeros",
    "write",
]


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile it as a part of its caller."""
    return cast("Callable[..., Any]", njit(inline="always")(function))


def read(dtype: Any, dimensions: int = 1) -> Any:
    """The type of an array that is only read: one that is mapped from a file may not be written."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def write(dtype: Any, dimensions: int = 1) -> Any:
    """The type of an array that is written."""
    return types.Array(dtype, dimensions, "C")


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_: Any, array: Any, index: Any) -> Any:  # noqa: ARG001  (numba counts them)
    """Ask for the cache line of `array[index]` ahead of its use; an index beyond the array does no harm."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        made = context.make_array(kind)(context, builder, arguments[0])
        address = builder.gep(made.data, [arguments[1]])
        pointer = builder.bitcast(address, cgutils.voidptr_t)
        whole = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, whole, whole, whole])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, whole(0), whole(3), whole(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


def addresses(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Where arrays begin, for `peek`; whoever calls holds them meanwhile."""
    return np.array([array.ctypes.data for array in arrays], np.uint64)


@intrinsic  # type: ignore[untyped-decorator]
def peek(_: Any, like: Any, address: Any, index: Any) -> Any:  # noqa: ARG001
    """Element `index` of an array of the type of `like`, by its address: so that one call reads any number of arrays."""

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[1], context.get_data_type(like.dtype).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[2]]))

    return like.dtype(like, types.uint64, types.intp), emit


@intrinsic  # type: ignore[untyped-decorator]
def high_product(_: Any, first: Any, second: Any) -> Any:  # noqa: ARG001
    """The upper 64 bits of the product of two uint64: for bits drawn uniformly and `n`, a number below `n`."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), emit


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(_: Any, bits: Any) -> Any:  # noqa: ARG001
    """The place of the lowest bit that is set, of a uint64 other than 0."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), emit
