"""Tags of every scheme stand for the same chunks; what they stand for is what seqeval reads."""

import random

import pytest
from seqeval import scheme as seqeval_scheme
from seqeval.metrics.sequence_labeling import get_entities

from terrazzo.errors import InputError
from terrazzo.tasks import schemes
from terrazzo.tasks.task import Span

SCHEMES = ["IO", "IOB1", "IOB2", "BIOES", "BILOU"]


def random_chunks(draw: random.Random, num_words: int, labels: str = "AB", gap: int = 0) -> list[schemes.Chunk]:
    chunks, at = [], draw.randint(0, 2)
    while at < num_words:
        end = min(num_words, at + draw.randint(1, 4))
        chunks.append((draw.choice(labels), at, end))
        at = end + draw.randint(gap, 2)
    return chunks


@pytest.mark.parametrize("scheme", SCHEMES)
def test_chunks_to_tags_and_back(scheme: schemes.Scheme) -> None:
    draw = random.Random(0)
    for _ in range(200):
        length = draw.randint(1, 12)
        chunks = random_chunks(draw, length, gap=1 if scheme == "IO" else 0)
        tags = schemes.tags_of_chunks(chunks, length, scheme)
        assert schemes.chunks_of_tags(tags) == chunks
        assert schemes.convert_tags(schemes.convert_tags(tags, "IOB2"), scheme) == tags


@pytest.mark.parametrize(("scheme", "name"), [("IOB2", "IOB2"), ("BIOES", "IOBES"), ("BILOU", "BILOU")])
def test_written_tags_are_strict_ones(scheme: schemes.Scheme, name: str) -> None:
    draw = random.Random(1)
    for _ in range(100):
        chunks = random_chunks(draw, 10)
        tags = schemes.tags_of_chunks(chunks, 10, scheme)
        strict = seqeval_scheme.Entities([list(tags)], getattr(seqeval_scheme, name)).entities[0]
        assert [(entity.tag, entity.start, entity.end) for entity in strict] == chunks


def test_any_tags_valid_or_not_are_read_as_seqeval_reads_them() -> None:
    draw = random.Random(2)
    choices = ["O", *(f"{prefix}-{label}" for prefix in "BIES" for label in ("A", "B-C"))]
    for _ in range(2000):
        tags = draw.choices(choices, k=draw.randint(1, 8))
        assert schemes.chunks_of_tags(tags) == [(label, start, end + 1) for label, start, end in get_entities(tags)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_told_from_its_tags(scheme: schemes.Scheme) -> None:
    draw = random.Random(3)
    rows = [schemes.tags_of_chunks(random_chunks(draw, 12), 12, scheme) for _ in range(50)]
    assert schemes.detect_scheme(rows) == scheme
    assert schemes.detect_scheme([("NOUN", "VERB"), ("DET",)]) == "plain"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("O", "O")], "no tag but O"),
        ([("B-A", "NOUN")], "'NOUN' has no such form as 'B-A'"),
        ([("B-A", "E-A"), ("U-A",)], "BIOES and BILOU in one file"),
    ],
)
def test_tags_of_no_scheme_are_refused(rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schemes.detect_scheme(rows)


TEXTS = [
    "Zoë saw 🙂👍🏽 in São_Paulo, 東京-2!",
    "e\u0301te\u0301 at İstanbul's \u200d gate ..",
    "हिन्दी में a b c d e f g",
]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_to_tags_and_back(text: str) -> None:
    words = schemes.split_words(text)
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    draw = random.Random(4)
    for _ in range(100):
        chunks = random_chunks(draw, len(words))
        places = [(label, words[first][0], words[last - 1][1]) for label, first, last in chunks]
        spans = tuple(Span(start=start, end=end, label=label, text=text[start:end]) for label, start, end in places)
        tags = schemes.tags_of_spans(words, spans)
        assert len(tags) == len(words)
        chunked = schemes.chunks_of_tags(tags)
        assert [(label, words[a][0], words[b - 1][1]) for label, a, b in chunked] == places


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("Ann's ex-Milan U.N. man, O'Brien.", ["Ann", "'s", "ex-Milan", "U.N.", "man", ",", "O'Brien", "."]),
        ("'We're at 10:30', 3,000.5 AT&T", ["'", "We", "'re", "at", "10:30", "'", ",", "3,000.5", "AT&T"]),
        ("e\u0301a-हिन्दी (end)", ["e\u0301a-हिन्दी", "(", "end", ")"]),
    ],
)
def test_signs_within_words(text: str, joined: list[str]) -> None:
    assert [text[start:end] for start, end in schemes.split_words(text, joined=True)] == joined
    assert "".join(text[start:end] for start, end in schemes.split_words(text)) == "".join(text.split())


def test_marks_belong_to_their_letters() -> None:
    text = "e\u0301te\u0301, हिन्दी"
    assert [text[start:end] for start, end in schemes.split_words(text)] == ["e\u0301te\u0301", ",", "हिन्दी"]


def test_a_word_that_a_span_touches_is_in_it_whole() -> None:
    words = schemes.split_words("the Berliners left")
    assert schemes.tags_of_spans(words, [Span(start=4, end=10, label="LOC")]) == ("O", "B-LOC", "O")
    assert schemes.tags_of_spans(words, [Span(start=3, end=13, label="LOC")]) == ("O", "B-LOC", "O")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(3, 4)], "span 3-4 .* holds no word"),
        ([(4, 4)], "holds no word"),
        ([(90, 99)], "holds no word"),
        ([(0, 5), (4, 13)], "shares a word with the one before"),
    ],
)
def test_spans_without_a_word_of_their_own_are_refused(spans: list[tuple[int, int]], message: str) -> None:
    words = schemes.split_words("the Berliners left")
    with pytest.raises(InputError, match=message):
        schemes.tags_of_spans(words, [Span(start=a, end=b, label="X") for a, b in spans])
