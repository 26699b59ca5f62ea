"""How well an answer agrees with the accepted ones, as SQuAD measures it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence


def answer_scores(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of words between what was said and the answer that it agrees with most; no answers: "".

    Reference: SQuAD 2.0's evaluate-v2.0.py (arXiv 1806.03822), compute_exact and compute_f1, maximum over answers.
    """
    given = normalised(said)
    accepted = [text for answer in answers if (text := normalised(answer))] or [""]
    return max(float(text == given) for text in accepted), max(_word_f1(given, text) for text in accepted)


def normalised(answer: str) -> str:
    """An answer in lower case without punctuation, articles and extra spaces.

    Reference: SQuAD's evaluation scripts (arXiv 1606.05250, section 6.1): normalize_answer.
    """
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _word_f1(said: str, right: str) -> float:
    a, b = said.split(), right.split()
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))
