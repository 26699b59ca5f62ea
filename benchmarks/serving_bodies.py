"""Thousands of bodies that a server should refuse, or answer, but never fail over."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.serving_client import HOST

#: A good body for each endpoint; the model is added.
GOOD: Mapping[str, Mapping[str, Any]] = {
    "/v1/embeddings": {"input": ["one text", "another"], "encoding_format": "float", "dimensions": 8},
    "/v1/classify": {"input": ["What a film!", {"text": "I fell asleep."}], "top_k": 2},
    "/v1/tag": {"input": [{"tokens": ["Ada", "left", "London"]}, "Ada left."], "offsets": "utf16"},
    "/v1/rerank": {"query": "eggs?", "documents": ["Hens.", {"text": "Five minutes."}], "top_n": 1},
    "/v1/tokenize": {"input": ["A bird sings."], "add_special_tokens": False},
    "/v1/qa": {"question": "Who?", "context": "Ada crossed the street."},
    "/v1/fill_mask": {"input": ["Paris is in [MASK]."], "top_k": 3},
}
JSON = "content-type: application/json\r\n"

#: Values that stand where others are expected.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    -(2**64),
    10**40,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "a\0b",
    "\u200b\u202e\ufeff",
    "é" * 300,
    "👩‍👩‍👧‍👦" * 50,
    "\r\nset-cookie: a=b",
    "../../etc/passwd",
    "[MASK]" * 40,
    "[CLS] [SEP] [PAD]",
    [],
    {},
    [[]],
    [[[]]],
    [None],
    [""],
    ["text", 1],
    [1, "text"],
    [-1],
    [2**40],
    [[0], []],
    [1.5],
    {"text": None},
    {"a": "x"},
    {"tokens": []},
    {"tokens": [""]},
    ["x"] * 300,
)


def requests(count: int, models: Mapping[str, str | None], seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` requests, each with the name of what is wrong with it.

    Args:
        models: name of the model that each endpoint is asked with.
    """
    dice = random.Random(seed)
    for _ in range(count):
        path = dice.choice(list(GOOD))
        good = {**GOOD[path], "model": models.get(path)}
        name, breaking = dice.choice(_BREAKINGS)
        body, headers = breaking(dice, good)
        lines = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\n{headers}content-length: {len(body)}\r\n\r\n"
        yield name, lines.encode() + body


Breaking = Callable[[random.Random, dict[str, Any]], tuple[bytes, str]]


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def _truncated(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    whole = _dumps(good)
    return whole[: dice.randrange(len(whole))], JSON


def _flipped(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    body = bytearray(_dumps(good))
    for _ in range(dice.randint(1, 4)):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return bytes(body), JSON


def _strange_value(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    return _dumps({**good, dice.choice(list(good)): dice.choice(STRANGE)}), JSON


def _strange_inside(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    lists = [key for key, value in good.items() if isinstance(value, list)] or list(good)
    values = [dice.choice(STRANGE) for _ in range(dice.randint(1, 3))]
    return _dumps({**good, dice.choice(lists): [*values, "a text"]}), JSON


def _missing(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    kept = dice.sample(list(good), dice.randrange(len(good)))
    return _dumps({key: good[key] for key in kept}), JSON


def _unknown_field(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    name = dice.choice(["inputs", "texts", "", "\0", "__class__", "model ", "é", "a" * 500])
    return _dumps({**good, name: dice.choice(STRANGE)}), JSON


def _nested(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    depth = dice.choice([3, 60, 190, 255, 1100, 100_000])
    opening, closing = dice.choice([(b"[", b"]"), (b'{"input":', b"}")])
    inner = opening * depth + dice.choice([b'"x"', b"1", b""]) + closing * depth
    return dice.choice([inner, b'{"input": ' + inner + b"}"]), JSON


def _numbers(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    numbers = ["NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 5000, "0x10", "1" + "0" * 400, "01", "1."]
    return _written(dice, good, dice.choice(numbers)), JSON


def _surrogates(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    texts = [r"\ud800", r"a\udc00b", r"\ud83d", r"\udc00\ud800", r"\uD83D\u0020", r"\u00", r"\x41"]
    return _written(dice, good, f'"{dice.choice(texts)}"'), JSON


def _document_fields(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    """Documents with fields to give back, whatever the endpoint."""
    value = dice.choice(["1" + "0" * 30, "-9223372036854775809", "NaN", "-1e999", "18446744073709551615", "1e308"])
    inner = dice.choice([value, f"[{value}]", f'{{"a": {value}}}', "[" * 190 + value + "]" * 190])
    rest = json.dumps({key: other for key, other in good.items() if key != "documents"} | {"return_documents": True})
    return f'{rest[:-1]}, "documents": [{{"text": "a", "id": {inner}}}]}}'.encode(), JSON


def _problem(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    problem = dice.choice(["mood", "", "\0", "é" * 300])
    rows = (
        {"input": [{"text": "a text", "problem": problem}, "a text"]} if dice.random() < 0.5 else {"problem": problem}
    )
    return _dumps({**good, **rows}), JSON


def _written(dice: random.Random, good: dict[str, Any], value: str) -> bytes:
    """The body with what is written as `value` in the place of a field's value, or in a list there."""
    key = dice.choice(list(good))
    rest = json.dumps({name: other for name, other in good.items() if name != key})
    value = dice.choice([value, f"[{value}]"])
    return f'{rest[:-1]}, "{key}": {value}}}'.encode()


def _bad_utf8(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    broken = dice.choice([b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf", b"\x80"])
    return _dumps(good).replace(b"a", broken, dice.randint(1, 3)), JSON


def _other_encoding(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(good).encode(dice.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"])), JSON


def _gzip_claim(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    plain = _dumps(good)
    body = dice.choice([plain, gzip.compress(plain), gzip.compress(b" " * 10**6)])
    return body, JSON + f"content-encoding: {dice.choice(['gzip', 'br', 'deflate', 'nonsense'])}\r\n"


def _content_type(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    kinds = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application/json;",
    ]
    kind = dice.choice([*kinds, "application/json; charset=utf-16", "é", "x" * 3000])
    return _dumps(good), f"content-type: {kind}\r\n"


def _no_content_type(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    return _dumps(good), ""


def _twice(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    key = dice.choice(list(good))
    again = json.dumps({key: dice.choice(STRANGE)})
    return (json.dumps(good)[:-1] + ", " + again[1:]).encode(), JSON


def _not_an_object(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    return dice.choice(
        [b"", b" ", b"null", b"[]", b'"x"', b"1", b"{", b"}", b"\0", b"{}{}", b"[{}]", b"//", b"{'a':1}"]
    ), JSON


def _random_bytes(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    return dice.randbytes(dice.randint(0, 400)), JSON


def _model_name(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    names = ["", "nobody", "../../etc/passwd", "\0", "a" * 10_000, "%00", "model\r\nx: y", "é", "{}", "$(id)"]
    return _dumps({**good, "model": dice.choice(names)}), JSON


def _long_key(dice: random.Random, good: dict[str, Any]) -> tuple[bytes, str]:
    return _dumps({**good, **{f"field {number}": number for number in range(dice.choice([10, 1000]))}}), JSON


_BREAKINGS: list[tuple[str, Breaking]] = [
    (breaking.__name__.strip("_").replace("_", " "), breaking)
    for breaking in (
        _truncated,
        _flipped,
        _strange_value,
        _strange_inside,
        _missing,
        _unknown_field,
        _nested,
        _numbers,
        _surrogates,
        _document_fields,
        _problem,
        _bad_utf8,
        _other_encoding,
        _gzip_claim,
        _content_type,
        _no_content_type,
        _twice,
        _not_an_object,
        _random_bytes,
        _model_name,
        _long_key,
    )
]


def large_requests(models: Mapping[str, str | None]) -> Iterator[tuple[str, bytes]]:
    """A few that are large: a text of 100,000 words, 10,000 texts, megabytes of nothing, millions of guesses."""
    embeddings, masks = {"model": models.get("/v1/embeddings")}, {"model": models.get("/v1/fill_mask")}
    bodies = {
        "a text of 100,000 words": {**embeddings, "input": "word " * 100_000},
        "10,000 texts": {**embeddings, "input": ["a text"] * 10_000},
        "100,000 token ids": {**embeddings, "input": [2000] * 100_000},
        "10,000 lists of ids": {**embeddings, "input": [[2000, 2001]] * 10_000},
        "a word of a megabyte": {**embeddings, "input": "x" * 10**6},
        "a megabyte of spaces": {**embeddings, "input": " " * 10**6},
        "a megabyte of joiners": {**embeddings, "input": "\u200d" * 300_000},
        "3,060,000 guesses": {**masks, "input": ["[MASK]" * 510] * 6, "top_k": 1000},
        "100,000 guesses": {**masks, "input": ["[MASK]" * 50] * 2, "top_k": 1000},
        "2 MB of brackets": None,
    }
    for name, value in bodies.items():
        body = b"[" * 2_000_000 if value is None else _dumps(value)
        path = "/v1/fill_mask" if "guesses" in name else "/v1/embeddings"
        head = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\n{JSON}content-length: {len(body)}\r\n\r\n"
        yield name, head.encode() + body


def broken_http() -> Iterator[tuple[str, bytes]]:
    """What is no HTTP, or lies about itself; a reply may be missing where the connection is closed at once."""
    host = f"host: {HOST}\r\n"
    post = f"POST /v1/embeddings HTTP/1.1\r\n{host}{JSON}"
    yield "no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200
    yield "a line of 80 kB", b"GET /" + b"a" * 80_000 + b" HTTP/1.1\r\n" + host.encode() + b"\r\n"
    yield "a line of a megabyte", b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\n" + host.encode() + b"\r\n"
    yield "headers of a megabyte", f"GET / HTTP/1.1\r\n{host}x: {'a' * 10**6}\r\n\r\n".encode()
    yield "10,000 headers", (f"GET / HTTP/1.1\r\n{host}" + "x: y\r\n" * 10_000 + "\r\n").encode()
    yield "40 kB of headers", f"GET /health/live HTTP/1.1\r\n{host}x: {'a' * 40_000}\r\n\r\n".encode()
    yield "a negative length", f"{post}content-length: -5\r\n\r\n".encode()
    yield "a length that is no number", f"{post}content-length: many\r\n\r\n".encode()
    yield "an endless length", f"{post}content-length: {10**30}\r\n\r\n".encode()
    yield "a huge length", f"{post}content-length: {10**10}\r\n\r\n".encode()
    yield "two lengths", f"{post}content-length: 5\r\ncontent-length: 6\r\n\r\n{{}}   ".encode()
    yield "chunks and a length", f"{post}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    yield "a bad chunk", f"{post}transfer-encoding: chunked\r\n\r\nZZ\r\n".encode()
    yield (
        "endless chunks",
        f"{post}transfer-encoding: chunked\r\n\r\n".encode() + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 200,
    )
    yield "a control character in a header", f"{post}x: \x01\r\ncontent-length: 2\r\n\r\n{{}}".encode()
    yield "another version", f"POST / HTTP/9.9\r\n{host}\r\n".encode()
    yield "another method", f"BREW /v1/embeddings HTTP/1.1\r\n{host}\r\n".encode()
    yield "no host", b"GET /health/live HTTP/1.1\r\n\r\n"
    yield "a path outside", f"GET /../../../../etc/passwd HTTP/1.1\r\n{host}\r\n".encode()
    yield "an encoded path outside", f"GET /page/%2e%2e/%2e%2e/settings.py HTTP/1.1\r\n{host}\r\n".encode()
    yield "a path with a zero", f"GET /%00 HTTP/1.1\r\n{host}\r\n".encode()
    yield (
        "a websocket",
        (
            f"GET / HTTP/1.1\r\n{host}upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ).encode(),
    )
    yield "half a websocket", f"{post}upgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n".encode()
    yield "an offer of HTTP/2", f"{post}upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{{}}".encode()
