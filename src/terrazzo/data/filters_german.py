"""German web text the way GottBERT cleans it: short lines, addresses, then ratios per document.

GottBERT computes the ratios and lets a one-class SVM, trained on a clean sample, decide; its authors find that
filtering brings no significant gain. Here each ratio has a threshold of its own instead, set so that running prose
passes: of the paragraphs of 67 German novels and 1028 news articles, none drops more than one in a thousand.

Reference: Scheible et al., GottBERT, arXiv 2012.02110, and github.com/GottBERT/roberta-snakemake-pipeline.
"""

from __future__ import annotations

import re
import string

from terrazzo.data.filters import drops

MIN_LINE = 40
MIN_WORDS = 20
MIN_STOP_WORDS = 0.10
MAX_PUNCTUATION = 0.20
MIN_UNIQUE = 0.30
UNIQUE_WINDOW = 200
MAX_UPPER = 0.40
MAX_UPPER_AND_PUNCTUATION = 0.45


@drops("every line has fewer than 40 characters or U+FFFD")
def drop_short_lines(text: str) -> str:
    """Keep the lines of at least 40 characters that lost no character to an earlier conversion."""
    return "\n".join(line for line in text.split("\n") if len(line) >= MIN_LINE and "\ufffd" not in line)


@drops("only web addresses, e-mail addresses, telephone numbers or emoji")
def strip_addresses(text: str) -> str:
    """Take out URLs, e-mail addresses, telephone numbers and emoji."""
    if "://" in text or "www." in text:
        text = _URL.sub(" ", text)
    if "@" in text:
        text = _EMAIL.sub(" ", text)
    return _EMOJI.sub(" ", _PHONE.sub(" ", text))


@drops("less than 10 % stop words")
def enough_stop_words(text: str) -> str | None:
    """Drop lists, tables, code and other languages: running German has 20 to 60 % function words.

    Documents under 20 words are left to the other filters, their ratio says nothing.
    """
    words = text.lower().split()
    if len(words) < MIN_WORDS:
        return text
    return text if sum(word in _STOP_WORDS for word in words) >= MIN_STOP_WORDS * len(words) else None


@drops("more than 20 % punctuation")
def little_punctuation(text: str) -> str | None:
    """Drop documents that are a fifth punctuation."""
    return text if _punctuation(text) <= MAX_PUNCTUATION * len(text) else None


@drops("less than 30 % different words")
def varied_words(text: str) -> str | None:
    """Drop documents that repeat themselves, judged on their first 200 words, as the ratio falls with length."""
    words = text.split(maxsplit=UNIQUE_WINDOW)[:UNIQUE_WINDOW]
    return text if len(set(words)) >= MIN_UNIQUE * len(words) else None


@drops("more than 40 % upper case")
def little_upper_case(text: str) -> str | None:
    """Drop documents in which 40 % of the characters are upper-case letters; German nouns make about 5 %."""
    return text if _upper(text) <= MAX_UPPER * len(text) else None


@drops("more than 45 % upper case and punctuation")
def little_upper_case_and_punctuation(text: str) -> str | None:
    """Drop documents that are mostly abbreviations, codes and marks."""
    return text if _upper(text) + _punctuation(text) <= MAX_UPPER_AND_PUNCTUATION * len(text) else None


_URL = re.compile(r"(?:https?://|ftp://|www\.)\S+")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# Begins with the one character class that the search can jump to: +49..., (0..., 0...
_PHONE = re.compile(
    r"[+(0](?<![\w.,/-][+(0])(?:(?<=\+)\d{1,3}|(?<=\()0[1-9]\d{1,4}\)|(?<=0)[1-9]\d{1,4})"
    r"[ /.-]{0,3}\d(?:[ /.-]?\d){4,11}(?!\w)"
)
_EMOJI = re.compile("[\u2600-\u27bf\u2b50\u2b55\ufe0f\u200d\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff]+")
_KEEP_UPPER = bytes(set(range(256)) - set(string.ascii_uppercase.encode()))
_KEEP_PUNCTUATION = bytes(set(range(256)) - set(string.punctuation.encode()))
_STOP_WORD_LIST = """
aber alle allem allen aller alles als also am an auch auf aus bei beim bin bis bist da damit dann das daß dass
dein deine dem den denn der des dich die dies diese diesem diesen dieser dieses dir doch dort du durch ein eine
einem einen einer eines er es etwas euch für gegen hab habe haben hat hatte hatten hier hin hinter ich ihm ihn
ihnen ihr ihre ihrem ihren ihrer im in ins ist ja jede jedem jeden jeder jedes jetzt kann kein keine keinem
keinen keiner man mehr mein meine mich mir mit muss muß nach nicht nichts noch nun nur ob oder ohne sehr sein
seine seinem seinen seiner seit selbst sich sie sind so soll sondern über um und uns unser unter viel vom von
vor war waren warum was weil welche wenn wer werden wie wieder will wir wird wo wollen wurde wurden zu zum zur
zwar zwischen
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


def _upper(text: str) -> int:
    return len(text.encode("utf-8", "replace").translate(None, _KEEP_UPPER)) + sum(map(text.count, "ÄÖÜ"))


def _punctuation(text: str) -> int:
    return len(text.encode("utf-8", "replace").translate(None, _KEEP_PUNCTUATION)) + sum(map(text.count, "„“”»«–—…’‚‘"))
