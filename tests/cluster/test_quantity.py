"""Quantities are exact, and what Kubernetes would not take is refused with what was probably meant."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_ray_ml.cluster._quantity import format_bytes, format_number, parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4), (4, 4), ("500m", Decimal("0.5")), ("0.5", Decimal("0.5")), (".5", Decimal("0.5")), ("48Gi", 48 * 2**30),
        ("1.5Gi", 3 * 2**29), ("1G", 10**9), ("1e3", 1000), ("1E3", 1000), ("2E", 2 * 10**18), ("1Ki", 1024), ("1k", 1000),
        ("100u", Decimal("0.0001")), ("5n", Decimal("5E-9")), ("1Ti", 2**40), ("-1", -1), ("5.", 5), (" 3 ", 3),
    ],
)  # fmt: skip
def test_a_quantity_is_its_exact_number(text, number):
    assert parse_quantity(text) == number


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("48GB", "did you mean 48Gi (powers of 1024) or 48G"), ("48gb", "48Gi"), ("48GiB", "did you mean 48Gi?"),
        ("48gi", "did you mean 48Gi?"), ("512kb", "512Ki (powers of 1024) or 512k "), ("", "expected a number"),
        ("four", "expected a number"), ("1 Gi", "did you mean 1Gi?"), ("1.2.3", "expected a number"), ("0x10", "expected"),
        (True, "is no quantity"), ("48K", "did you mean 48Ki"),
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_with_a_near_one(text, near):
    with pytest.raises(ValueError, match="is no") as raised:
        parse_quantity(text)
    assert near in str(raised.value)


@given(st.integers(min_value=0, max_value=2**60))
def test_bytes_that_are_shown_are_near_what_they_are(number):
    assert abs(parse_quantity(format_bytes(number)) - number) <= Decimal("0.051") * max(number, 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (48 * 2**30, "48Gi"),
        (3 * 2**29, "1.5Gi"),
        (256 * 2**20, "256Mi"),
        (1023, "1023"),
        (2**40, "1Ti"),
        (0, "0"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_reads_best(number, text):
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(Decimal("15.000"), "15"), (Decimal("0.500"), "0.5"), (100, "100")]
)
def test_counts_have_no_needless_digits(number, text):
    assert format_number(number) == text
