"""Numbers as a person reads them: 1.2M, 3 m 20 s, 41.2 %."""

from __future__ import annotations

import math

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_NONE = "–"


def short(number: float, digits: int = 3) -> str:
    """`number` to `digits` significant digits with a decimal prefix: 1234567 -> "1.23M"; an en dash where it is NaN."""
    if not math.isfinite(number):
        return _NONE
    rounded = float(f"{number:.{digits}g}")
    size, prefix = prefix_of(rounded)
    exact = rounded == number and rounded / size == round(rounded / size)
    return (f"{rounded / size:.0f}" if exact else significant(rounded / size, digits)) + prefix


def prefix_of(number: float) -> tuple[float, str]:
    """The decimal prefix that suits a number, and what it stands for: 12000 -> (1000.0, "k")."""
    return next((p for p in _PREFIXES if abs(number) >= p[0]), (1.0, ""))


def with_unit(number: float, unit: str) -> str:
    """`number` with a decimal prefix on its unit: 1.21e13, "FLOP/s" -> "12.1 TFLOP/s"."""
    text = short(number)
    prefix = text[-1] if text[-1].isalpha() else ""
    return f"{text.removesuffix(prefix)} {prefix}{unit}"


def significant(number: float, digits: int = 3) -> str:
    """`number` to `digits` significant digits without an exponent: 0.01234 -> "0.0123", 1234.5 -> "1,234"."""
    if not math.isfinite(number):
        return _NONE
    if number == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{number:,.{max(decimals, 0)}f}"


def whole(number: float) -> str:
    """A count with thousands separated: 1234567 -> "1,234,567"."""
    return f"{number:,.0f}" if math.isfinite(number) else _NONE


def plural(number: int, noun: str) -> str:
    """A count with its noun: 1 -> "1 step", 3000 -> "3,000 steps", 2 -> "2 classes"."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{whole(number)} {noun}{'' if number == 1 else ending}"


def percent(share: float, decimals: int = 1) -> str:
    """A share of 1 in percent: 0.4123 -> "41.2 %"."""
    return f"{100 * share:.{decimals}f} %" if math.isfinite(share) else _NONE


def duration(seconds: float) -> str:
    """Seconds as the two largest of days, hours, minutes, seconds: 200 -> "3 m 20 s"; below ten with a decimal."""
    if not math.isfinite(seconds):
        return _NONE
    if seconds == 0:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    if rest >= 86_400:
        rest = round(rest / 3600) * 3600
    elif rest >= 3600:
        rest = round(rest / 60) * 60
    parts = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        value, rest = divmod(rest, size)
        if value:
            parts.append(f"{value} {unit}")
    return " ".join(parts)


def money(amount: float) -> str:
    """An amount of an unnamed currency, to cents, below ten cents to two significant digits."""
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"
