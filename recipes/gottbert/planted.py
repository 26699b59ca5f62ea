"""Planted dirt: documents that a German filter should drop or mend, each kind made by its own function.

Written before the filter was tried on them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_GOODS = [
    "Handy",
    "Laptop",
    "Uhren",
    "Schuhe",
    "Möbel",
    "Reifen",
    "Kredit",
    "Versicherung",
    "Tarif",
    "Brille",
    "Drucker",
    "Kamera",
    "Koffer",
    "Matratze",
]
_PUSH = [
    "günstig",
    "billig",
    "kaufen",
    "bestellen",
    "sparen",
    "Rabatt",
    "Angebot",
    "gratis",
    "Versand",
    "Preisvergleich",
    "Testsieger",
    "online",
    "Shop",
    "Sale",
]
_CALLS = ("Jetzt zugreifen!", "Nur heute!", "Hier klicken!", "Sofort bestellen!", "Gewinn sichern!", "Gratis testen!")


def lost_bytes(text: str) -> str:
    """Latin-1 read as UTF-8: every umlaut is lost and leaves U+FFFD."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def mojibake(text: str) -> str:
    """UTF-8 read as Windows-1252: `ü` becomes `Ã¼`."""
    return text.encode("utf-8").decode("cp1252", "replace")


def keywords(draw: random.Random) -> str:
    """A search-engine bait: goods and catchwords without a sentence."""
    return " ".join(draw.choice(_GOODS if draw.random() < 0.5 else _PUSH) for _ in range(draw.randint(40, 90)))


def slogans(draw: random.Random) -> str:
    """The same few calls over and over, with an address."""
    calls = draw.sample(_CALLS, 3)
    return " ".join(
        [*(draw.choice(calls) for _ in range(draw.randint(25, 50))), f"www.shop{draw.randint(1, 9999)}.example"]
    )


def shouting(draw: random.Random) -> str:
    """Capitals, exclamation marks and prices."""
    parts = [f"{draw.choice(_GOODS).upper()} !!! {draw.choice(_PUSH).upper()} ***" for _ in range(draw.randint(8, 20))]
    return " ".join([*parts, f"NUR {draw.randint(1, 999)},99 EURO !!!"])


def planted(reserved: Sequence[str], foreign: Sequence[str], count: int, seed: int = 0) -> dict[str, list[str]]:
    """`count` documents of each kind; the broken encodings are made from `reserved` German ones with umlauts."""
    draw = random.Random(seed)
    return {
        "lost_bytes": [lost_bytes(text) for text in reserved[:count]],
        "mojibake": [mojibake(text) for text in reserved[count : 2 * count]],
        "keywords": [keywords(draw) for _ in range(count)],
        "slogans": [slogans(draw) for _ in range(count)],
        "shouting": [shouting(draw) for _ in range(count)],
        "foreign": list(foreign[:count]),
    }
