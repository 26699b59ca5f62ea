"""What the server refuses, and how it says so."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys

import pytest

from terrazzo.errors import InputError
from terrazzo.serve import limits, served
from terrazzo.serve.endpoints import send_error
from terrazzo.serve.engine import Draining, QueueFull
from terrazzo.serve.keys import Keys

KEY = "correct-horse"
BODIES = {
    "nothing": b"",
    "half": b'{"input": "a',
    "binary": bytes(range(256)),
    "not UTF-8": b'{"input": "\xff\xfe"}',
    "half a surrogate pair": b'{"input": "\\ud83e"}',
    "a NUL in a name": b'{"in\\u0000put": "a"}',
    "NaN": b'{"input": "a", "dimensions": NaN}',
    "infinity": b'{"input": "a", "dimensions": 1e999}',
    "a huge number": b'{"input": "a", "dimensions": 1' + b"0" * 6000 + b"}",
    "a huge token": b'{"input": [99999999999999999999999999]}',
    "deep lists": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a long name": b'{"' + b"a" * 1_000_000 + b'": 1}',
    "a long model": b'{"input": "a", "model": "' + b"a" * 1_000_000 + b'"}',
    "a list": b"[]",
    "null": b"null",
    "a number in quotes": b'{"input": "a", "dimensions": "2"}',
    "mixed inputs": b'{"input": ["a", 5]}',
    "no inputs": b'{"input": []}',
    "truth for a text": b'{"input": true}',
    "an unknown format": b'{"input": "a", "encoding_format": "int8"}',
}


def refusal(reply):
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_hostile_bodies_are_answered_and_nothing_breaks(server, body):
    reply = server.raw("/v1/embeddings", body)
    assert reply.status_code in (400, 404, 422), reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert len(reply.content) < 1000


def test_thousands_of_wrong_items_are_told_as_one(server_with):
    server = server_with(max_body_bytes=2**23)
    for items in (b"1.5", b"{}", b"[1.5]"):
        body = b'{"input": [' + b",".join([items] * 40_000) + b"]}"
        assert refusal(server.raw("/v1/embeddings", body))[0] == 422
    keys = b",".join(b'"%x": 1' % i for i in range(20_000))
    assert "20,001 fields" in server.raw("/v1/embeddings", b"{" + keys + b"}").json()["error"]["message"]


def test_wrong_fields_are_named_with_their_path(server):
    post = server.post
    assert refusal(post("/v1/embeddings", input=["a", 5])) == (422, "invalid_value", "input.1")
    assert refusal(post("/v1/embeddings")) == (422, "missing_field", "input")
    misspelt = post("/v1/embeddings", inptu="a")
    assert refusal(misspelt) == (422, "unknown_field", "inptu") and "'input'" in misspelt.json()["error"]["message"]
    assert refusal(post("/v1/rerank", query="a", documents=["b", {"txt": "c"}]))[2] == "documents.1.text"
    assert refusal(post("/v1/classify", input=[{"text": "a", "problm": "b"}]))[2] == "input.0.problm"
    assert refusal(post("/v1/fill_mask", input="[MASK]", top_k=0))[2] == "top_k"
    assert refusal(post("/v1/rerank", query=" ", documents=["a"])) == (422, "invalid_value", "query")
    assert refusal(server.raw("/v1/embeddings", b"{")) == (400, "invalid_json", None)
    assert refusal(post("/v1/qa", input=[3]))[2] == "input.0"


@pytest.mark.parametrize(
    ("path", "given", "said"),
    [
        ("/v1/classify", ["ok", "", 3], "input.2: write a text, a pair or an object (got 3)"),
        ("/v1/classify", [["a", None]], "input.0.1: write a text (got null)"),
        ("/v1/classify", True, "input: write a text, a list or an object (got true)"),
        ("/v1/fill_mask", ["[MASK]", 5], "input.1: write a text (got 5)"),
    ],
)
def test_a_value_of_another_type_is_told_what_to_write(server, path, given, said):
    reply = server.post(path, input=given)
    assert (reply.status_code, reply.json()["error"]["message"]) == (422, said)


def test_models_that_are_not_here_or_cannot_are_told_apart(server):
    unknown = server.post("/v1/classify", model="mods", input="a")
    assert refusal(unknown) == (404, "model_not_found", "model")
    assert "no model 'mods' here: did you mean 'moods'? served: answers, desk" in unknown.json()["error"]["message"]
    strange = server.post("/v1/classify", model="zzz", input="a").json()["error"]["message"]
    assert strange.startswith("no model 'zzz' here; served: answers") and strange.count("answers") == 1
    unable = server.post("/v1/tag", model="moods", input="a")
    assert refusal(unable) == (400, "model_cannot_do", "model") and "tags" in unable.json()["error"]["message"]
    assert refusal(server.get("/v1/models/mods")) == (404, "model_not_found", "model")


def test_paths_methods_and_types_that_are_not_served(server):
    assert refusal(server.get("/v1/nothing"))[:2] == (404, "not_found")
    wrong = server.get("/v1/embeddings")
    assert refusal(wrong)[:2] == (405, "method_not_allowed") and wrong.headers["allow"] == "POST"
    assert server.get("/info", method="DELETE").headers["allow"] == "GET, HEAD"
    assert server.get("/health/live", method="HEAD").status_code == 200
    form = server.raw("/v1/embeddings", b"input=a", headers={"content-type": "application/x-www-form-urlencoded"})
    assert refusal(form)[:2] == (415, "unsupported_media_type")
    charset = {"content-type": "application/json; charset=utf-8"}
    assert server.raw("/v1/embeddings", b'{"input": "a", "model": "moods"}', headers=charset).status_code == 200


def test_bodies_and_lists_have_limits(server_with):
    server = server_with(max_body_bytes=200, max_texts=3)
    assert server.post("/v1/embeddings", model="moods", input=["a"] * 3).status_code == 200
    many = server.post("/v1/embeddings", model="moods", input=["a"] * 4)
    assert refusal(many) == (422, "too_many_inputs", "input") and " 3" in many.json()["error"]["message"]
    assert refusal(server.post("/v1/rerank", model="moods", query="a", documents=["b"] * 4))[2] == "documents"
    body = json.dumps({"model": "moods", "input": "a" * 200}).encode()
    assert refusal(server.raw("/v1/embeddings", body))[:2] == (413, "body_too_large")
    assert server.raw("/v1/embeddings", b"{}", headers={"x": "y" * 40_000}).status_code == 431


def test_guesses_of_a_request_have_a_limit(server, monkeypatch):
    monkeypatch.setattr(served, "MAX_GUESSES", 12)
    text = "[MASK] the [MASK]"
    assert server.post("/v1/fill_mask", model="masks", input=[text, text], top_k=3).status_code == 200
    many = server.post("/v1/fill_mask", model="masks", input=[text, text], top_k=4)
    assert refusal(many) == (422, "too_many_guesses", "top_k")
    assert "4 masks with 4 guesses each" in many.json()["error"]["message"]


@pytest.mark.parametrize("value", [b"1" + b"0" * 30, b"-9223372036854775809", b"NaN", b"1e999", b'{"a": [-1e999]}'])
def test_fields_of_documents_that_cannot_be_given_back_are_refused(server, value):
    body = b'{"model": "moods", "query": "a", "return_documents": true, "documents": ["c", {"text": "b", "id": %b}]}'
    reply = server.raw("/v1/rerank", body % value)
    assert refusal(reply) == (422, "invalid_value", "documents.1.id"), reply.text
    assert "cannot be given back" in reply.json()["error"]["message"]
    extremes = b'{"ids": [18446744073709551615, -9223372036854775808, 1e308, true, null], "name": "d"}'
    kept = server.raw("/v1/rerank", body % extremes).json()["results"]
    assert {"text": "b", "id": json.loads(extremes)} in [result["document"] for result in kept]


def test_a_problem_is_for_models_of_several(server):
    post = server.post
    lone = post("/v1/classify", model="moods", input=["a bird"], problem="mood")
    assert refusal(lone) == (422, "invalid_value", "problem") and "'moods'" in lone.json()["error"]["message"]
    row = {"text": "a bird", "problem": "mood"}
    assert refusal(post("/v1/classify", model="moods", input=row)) == (422, "unusable_input", "input")
    bad, good = post("/v1/classify", model="moods", input=[row, "a bird"]).json()["data"]
    assert bad["error"]["param"] == "input.0" and "problem" in bad["error"]["message"] and good["label"]


def test_an_error_that_quotes_what_is_no_unicode_is_still_told():
    sent = []

    async def send(message):
        sent.append(message)

    assert asyncio.run(send_error(send, InputError("no model 'm\udcff' here"))) == 422
    assert json.loads(sent[1]["body"])["error"]["message"] == "no model 'm\udcff' here"


def test_a_body_of_undeclared_length_is_read_no_further_than_its_limit(server_with):
    app, asked = server_with(max_body_bytes=100).app, []

    async def receive():
        asked.append(1)
        assert len(asked) < 9, "it is read on"
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    assert run(app, scope("/v1/embeddings"), receive)[0]["status"] == 413
    assert len(asked) == 2


def test_a_body_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.01)
    first, *_ = run(server.app, scope("/v1/embeddings"), lambda: asyncio.sleep(60))
    assert first["status"] == 408


def test_keys_open_everything_but_health_and_the_page(server_with, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nsecond-horse\n{KEY}  \n")
    server = server_with(api_key_file=file)
    for given in (
        {},
        {"authorization": "Bearer wrong-horse"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
    ):
        for path in ("/info", "/metrics", "/v1/models", "/openapi.json", "/nothing"):
            reply = server.get(path, headers=given)
            assert refusal(reply)[:2] == (401, "invalid_api_key"), path
            assert reply.headers["www-authenticate"] == "Bearer"
        assert server.raw("/v1/embeddings", b"{}", headers=given).status_code == 401
        assert [server.get(path, headers=given).status_code for path in ("/health/live", "/health/ready", "/")] == [
            200
        ] * 3
    for key in (KEY, "second-horse"):
        assert server.get("/info", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert "API key" in server.get("/openapi.json", headers={"authorization": f"bearer {KEY}"}).text


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "two words of it\n", "ключ-к-двери\n"])
def test_key_files_without_good_keys_are_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match="keys"):
        Keys.read(tmp_path / "keys")


def test_a_full_queue_and_a_server_that_stops_say_when_to_come_back(server, models, monkeypatch):
    def refuse(error):
        async def submit(*_):
            raise error

        monkeypatch.setattr(models["moods"].engine, "submit", submit)
        return server.post("/v1/embeddings", model="moods", input="a")

    full = refuse(QueueFull(2.3))
    assert (full.status_code, full.headers["retry-after"], refusal(full)[1]) == (429, "3", "queue_full")
    assert full.json()["error"]["type"] == "rate_limit_error"
    stopping = refuse(Draining())
    assert refusal(stopping)[:2] == (503, "draining") and stopping.headers["retry-after"]


def test_what_nobody_foresaw_is_logged_and_not_told(server, models, monkeypatch, caplog):
    async def submit(*_):
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(models["moods"].engine, "submit", submit)
    with caplog.at_level(logging.ERROR, "terrazzo.serve"):
        reply = server.post("/v1/embeddings", model="moods", input="a")
    assert refusal(reply) == (500, "internal_error", None) and "secret" not in reply.text
    assert "a secret of the house" in caplog.text


def test_health_tells_life_from_readiness(server, models, monkeypatch):
    monkeypatch.setattr(models, "ready", lambda: {"moods": "warming up", "tags": None})
    assert server.get("/health/live").json() == {"status": "live"}
    unready = server.get("/health/ready")
    assert refusal(unready)[:2] == (503, "not_ready") and "moods: warming up" in unready.json()["error"]["message"]
    assert server.get("/info").json()["ready"] is False


def test_pages_of_other_sites_may_call_only_where_allowed(server, server_with):
    asked = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.get("/health/live", headers=asked).headers
    allowing = server_with(allow_origins=("https://example.org",))
    assert allowing.get("/health/live", headers=asked).headers["access-control-allow-origin"] == "https://example.org"
    assert (
        "access-control-allow-origin" not in allowing.get("/info", headers={"origin": "https://evil.example"}).headers
    )


def test_a_client_that_leaves_takes_its_work_along(server, models, monkeypatch):
    begun, cancelled = asyncio.Event(), []

    async def submit(*_):
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    monkeypatch.setattr(models["moods"].engine, "submit", submit)
    messages = iter([{"type": "http.request", "body": b'{"input": "a", "model": "moods"}', "more_body": False}])

    async def receive():
        for message in messages:
            return message
        await begun.wait()
        return {"type": "http.disconnect"}

    assert run(server.app, scope("/v1/embeddings"), receive) == [] and cancelled
    metrics = server.get("/metrics").text
    assert 'terrazzo_requests_total{route="/v1/embeddings",status="499"} 1.0' in metrics


def test_requests_are_written_down_as_json(server_with, capfdbinary):
    server_with(access_log="json").get("/health/live")
    line = json.loads(capfdbinary.readouterr().out)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/health/live", 200) and line["ms"] >= 0


def test_requests_are_answered_when_nobody_reads_their_lines(server_with, monkeypatch, caplog):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, caplog.at_level(logging.ERROR, "terrazzo.serve"):
        monkeypatch.setattr(sys, "stdout", gone)
        server = server_with(access_log="json")
        assert [server.get("/health/live").status_code for _ in range(3)] == [200] * 3
    (said,) = caplog.records
    assert "standard output" in said.getMessage() and said.exc_info is None


def scope(path):
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "client": None}


def run(app, scope, receive):
    """What an application sends for one request."""
    sent = []

    async def send(message):
        sent.append(message)

    async def ended():
        _, late = await asyncio.wait([asyncio.create_task(app(scope, receive, send))], timeout=20)
        assert not late, "the request hangs"

    asyncio.run(ended())
    return sent
