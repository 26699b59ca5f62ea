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
    for size, prefix in _PREFIXES:
        if abs(rounded) >= size:
            return significant(rounded / size, digits) + prefix
    return significant(rounded, digits)


def significant(number: float, digits: int = 3) -> str:
    """`number` to `digits` significant digits without an exponent, whole numbers in full: 0.01234 -> "0.0123"."""
    if not math.isfinite(number):
        return _NONE
    if number == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    if number == round(number):
        return f"{number:,.0f}"
    return f"{number:,.{max(decimals, 0)}f}"


def whole(number: float) -> str:
    """A count with thousands separated: 1234567 -> "1,234,567"."""
    return f"{number:,.0f}" if math.isfinite(number) else _NONE


def percent(share: float, decimals: int = 1) -> str:
    """A share of 1 in percent: 0.4123 -> "41.2 %"."""
    return f"{100 * share:.{decimals}f} %" if math.isfinite(share) else _NONE


def duration(seconds: float) -> str:
    """Seconds as the two largest of days, hours, minutes, seconds: 200 -> "3 m 20 s"; below ten with a decimal."""
    if not math.isfinite(seconds):
        return _NONE
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
