"""The machine code of exact sums: numbers as whole multiples of the smallest one, in digits of 32 bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import boolean, float64, int64, types

from sp_ray_ml._compiled import compiled

__all__ = ["SQUARE_DIGITS", "SUM_DIGITS", "add_squares", "add_values"]

SUM_DIGITS, SQUARE_DIGITS = 66, 132
"""Digits of all sums and of all sums of squares, the last with room for more."""

_VALUES = types.Array(float64, 1, "C", readonly=True)
_DIGIT = 0xFFFFFFFF
_BLOCK = 2_048
"""Values that are added before digits are carried; they stay in a core's nearest cache."""
_SLICE = 50
"""Bits that are cut off of values at a time: 64 hold the sum of a block of them."""
_HUGE = 2_000  # float64's exponent above which there is no larger number to round by


@compiled()
def _add(whole: Any, place: Any, sign: Any, digits: Any) -> None:
    """Add a number below 2^62 times 2^place; `sign` is -1 to take it away, and 0 otherwise."""
    at, shift = place >> 5, place & 31
    low, high = (whole & _DIGIT) << shift, (whole >> 32) << shift
    digits[at] += ((low & _DIGIT) ^ sign) - sign
    digits[at + 1] += (((low >> 32) + (high & _DIGIT)) ^ sign) - sign
    digits[at + 2] += ((high >> 32) ^ sign) - sign


@compiled()
def _carry(digits: Any) -> None:
    for at in range(digits.shape[0] - 1):
        digits[at + 1] += digits[at] >> 32
        digits[at] &= _DIGIT


@compiled()
def _parts(bits: Any) -> tuple[Any, Any]:
    """The 53 bits of a float64, and the power of 2, from 2^-1074 on, that they are multiples of."""
    exponent = (bits >> 52) & 0x7FF
    return (bits & 0xFFFFFFFFFFFFF) | (int64(exponent > 0) << 52), max(exponent, 1) - 1


@compiled(boolean(_VALUES, int64[::1]))
def add_values(values: Any, digits: Any) -> Any:
    """Add numbers to digits of 2^-1074, the lowest first, and say whether all are finite.

    Added to a number that is much larger, a value is rounded: 50 bits of all values of a block are cut off at a time,
    and added as whole numbers, until nothing is left.

    Args:
        values: [rows].
        digits: [66].
    """
    rest, rounded = np.empty(_BLOCK), np.empty(_BLOCK + 1)
    left, whole = rest.view(np.int64), rounded.view(np.int64)
    for begin in range(0, values.shape[0], _BLOCK):
        rows = min(_BLOCK, values.shape[0] - begin)
        largest = int64(0)
        for i in range(rows):
            rest[i] = values[begin + i]
            largest = max(largest, left[i] & 0x7FFFFFFFFFFFFFFF)
        exponent = largest >> 52
        if exponent == 0x7FF:
            return False
        if exponent > _HUGE:
            for i in range(rows):
                one, place = _parts(left[i])
                _add(one, place, left[i] >> 63, digits)
                if i % 512 == 511:
                    _carry(digits)
            largest = int64(0)
        place = max(exponent, 1) - 1 + 53
        while largest > 0:
            place = max(place - _SLICE, 0)
            rounder = math.ldexp(1.5, place - 1074 + 52)
            for i in range(rows):
                rounded[i] = rest[i] + rounder
            rounded[rows] = rounder
            total = int64(0)
            for i in range(rows):
                total += whole[i] - whole[rows]
            largest = int64(0)
            for i in range(rows):
                rest[i] -= rounded[i] - rounder
                largest |= left[i] & 0x7FFFFFFFFFFFFFFF
            _add(abs(total), place, total >> 63, digits)
        _carry(digits)
    return True


@compiled(boolean(_VALUES, int64[::1]))
def add_squares(values: Any, digits: Any) -> Any:
    """As `add_values`, the squares of numbers to digits of 2^-2148.

    Args:
        values: [rows].
        digits: [132].
    """
    bits, largest = values.view(np.int64), int64(0)
    for begin in range(0, values.shape[0], _BLOCK):
        for one in bits[begin : begin + _BLOCK]:
            largest = max(largest, one & 0x7FFFFFFFFFFFFFFF)
            whole, place = _parts(one)
            high, low = whole >> 27, whole & 0x7FFFFFF
            across, above = high * low, high * high
            # The square in digits of its own, high² 2^54 + 2 high low 2^27 + low².
            first = low * low + ((across & 0xF) << 28)
            second = (first >> 32) + (across >> 4) + ((above & 0x3FF) << 22)
            third = (second >> 32) + (above >> 10)
            at, shift = place >> 4, 2 * place & 31
            a, b = (first & _DIGIT) << shift, (second & _DIGIT) << shift
            c, d = (third & _DIGIT) << shift, (third >> 32) << shift
            digits[at] += a & _DIGIT
            digits[at + 1] += (a >> 32) + (b & _DIGIT)
            digits[at + 2] += (b >> 32) + (c & _DIGIT)
            digits[at + 3] += (c >> 32) + d
        _carry(digits)
    return largest < 0x7FF0000000000000
