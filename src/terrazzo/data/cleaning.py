"""The cleaning presets. A new filter is a function in a `filters*.py` file and a name in this table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from terrazzo.config import nearest
from terrazzo.data import filters, filters_german, filters_tweets
from terrazzo.data.filters import Filter
from terrazzo.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Filters in their order, whether the tokenizer folds case and accents, and the tags that it keeps whole."""

    filters: tuple[Filter, ...]
    lowercase: bool = False
    strip_accents: bool = False
    tags: tuple[str, ...] = ()


PRESETS = {
    "english": Preset(
        filters=(
            filters.repair_unicode,
            filters.tidy_whitespace,
            filters.no_lost_characters,
            filters.min_characters(10),
            filters.min_letter_share(0.5),
        ),
        lowercase=True,
        strip_accents=True,
    ),
    "german": Preset(
        filters=(
            filters_german.drop_short_lines,
            filters.repair_unicode,
            filters_german.strip_addresses,
            filters.tidy_whitespace,
            filters_german.enough_stop_words,
            filters_german.little_punctuation,
            filters_german.varied_words,
            filters_german.little_upper_case,
            filters_german.little_upper_case_and_punctuation,
        ),
    ),
    "tweets": Preset(
        filters=(
            filters_tweets.unescape_html,
            filters.repair_unicode,
            filters_tweets.tag_users_and_urls,
            filters.tidy_whitespace,
            filters_tweets.more_than_tags,
        ),
        tags=(filters_tweets.USER, filters_tweets.URL),
    ),
    "raw": Preset(filters=()),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: {nearest(name, PRESETS)}")
    return PRESETS[name]


def clean(text: str, steps: Sequence[Filter]) -> tuple[str, str]:
    """Run a document through `steps`: (cleaned text, "") or ("", reason of the first step that left nothing of it).

    Blank documents go whatever the steps.
    """
    if not text or text.isspace():
        return "", "blank"
    for step in steps:
        result = step.apply(text)
        if not result or result.isspace():
            return "", step.reason
        text = result
    return text, ""
