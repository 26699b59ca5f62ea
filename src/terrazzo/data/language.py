"""Language identification, optional: keeps the documents of one language."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

from terrazzo.config import nearest
from terrazzo.data.filters import Filter
from terrazzo.errors import InputError

_JUDGED = 1000  # characters; more do not change the verdict and cost time


def language_filter(code: str) -> Filter:
    """A filter that drops documents in another language than `code` (ISO 639-1, e.g. "de").

    Judged on the first thousand characters; below about 20 characters the verdict is a guess.

    Raises:
        InputError: py3langid is not installed, or does not know `code`.

    Reference: Lui and Baldwin, langid.py, ACL 2012 demonstrations; py3langid is its maintained successor.
    """
    classify = _classifier(code)
    return Filter(f"language is not {code}", lambda text: text if classify(text[:_JUDGED]) == code else None)


@cache
def _classifier(code: str) -> Callable[[str], str]:
    try:
        langid = importlib.import_module("py3langid")
    except ModuleNotFoundError:
        raise InputError(f"--language {code}: needs a package: pip install 'terrazzo[data]'") from None
    known = {str(label) for label, _ in langid.rank("")}
    if code not in known:
        raise InputError(f"--language {code!r}: no such language code; {nearest(code, known)}")

    def classify(text: str) -> str:
        label, _ = langid.classify(text)
        return str(label)

    return classify
