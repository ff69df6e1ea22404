"""Kubernetes quantities: `500m` CPUs, `48Gi` of memory, as exact numbers and back."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["format_bytes", "format_number", "parse_quantity"]

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:(m|u|n|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE]([+-]?\d+))?")
_FACTORS = {
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for unit, power in zip("num", (-3, -2, -1), strict=True)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}
_BYTES = re.compile(r"(?i)([\d.]+)\s*([kmgtpe])(i?)(?:b|bytes?)?")


def parse_quantity(value: str | float | Decimal) -> Decimal:
    """The number that a quantity stands for, in CPUs, bytes or pieces.

    Raises:
        ValueError: It is none that Kubernetes takes; the message names a near one.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no quantity")  # noqa: TRY004 - one kind of error for whoever checks input
    text = str(value).strip()
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no Kubernetes quantity{_near(text)}")
    number, unit, exponent = match.groups()
    return Decimal(number) * (Decimal(10) ** int(exponent) if exponent else _FACTORS[unit or ""])


def _near(text: str) -> str:
    if match := _BYTES.fullmatch(text):
        number, unit, binary = match.groups()
        power, decimal = unit.upper(), "k" if unit in "kK" else unit.upper()
        if binary:
            return f"; did you mean {number}{power}i?"
        return f"; did you mean {number}{power}i (powers of 1024) or {number}{decimal} (powers of 1000)?"
    return ": expected a number such as 4, 500m or 48Gi"


def format_number(value: Decimal | float) -> str:
    """A count of CPUs or GPUs without needless digits: `15`, `0.5`."""
    number = Decimal(str(value)) if not isinstance(value, Decimal) else value
    return f"{number.normalize():f}"


def format_bytes(value: Decimal | float) -> str:
    """Bytes in the largest unit of 1024 that keeps them readable: `48Gi`, `1.5Gi`, `256Mi`."""
    number = Decimal(str(value)) if not isinstance(value, Decimal) else value
    for unit in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if abs(number) >= _FACTORS[unit]:
            return f"{(number / _FACTORS[unit]).quantize(Decimal('0.1')).normalize():f}{unit}"
    return f"{number.normalize():f}"
