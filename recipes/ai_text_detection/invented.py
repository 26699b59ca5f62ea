"""Tiny texts with the structure of the real sets, for the smoke tier."""

from __future__ import annotations

import random

from recipes.ai_text_detection.texts import HUMAN, Document

_NOUNS = ("river", "house", "letter", "garden", "teacher", "machine", "winter", "road", "paper", "story")
_HABITS = {HUMAN: ("maybe", "honestly", "well"), "machine": ("furthermore", "moreover", "overall")}


def invented(kind: str) -> list[Document]:
    """Texts whose writers have a word of their own; `kind` is "essays" or "continuations"."""
    draw = random.Random(kind)
    places: list[tuple[str, str, int]]
    generators: tuple[str, ...] = ("gpt-3.5-turbo",)
    if kind == "essays":
        places = [("essays", str(i % 6), i // 6) for i in range(48)]
    else:
        places = [(domain, f"{domain} {i}", 0) for domain in ("xsum", "squad", "writing") for i in range(20)]
        generators = ("gpt2-xl", "opt-2.7b", "gpt-j-6B", "gpt-4")
    found = []
    for domain, prompt, number in places:
        for writer in (HUMAN, *generators):
            habit = _HABITS[HUMAN if writer == HUMAN else "machine"]
            words = [f"{domain}", *(draw.choice(_NOUNS) for _ in range(draw.randint(4, 9))), draw.choice(habit)]
            text = f"{' '.join(words)} {number}"
            found.append(Document(text=text, generator=writer, domain=domain, prompt=prompt))
    return found
