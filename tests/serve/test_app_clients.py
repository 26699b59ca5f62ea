"""Real clients on a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import uvicorn

from terrazzo.serve.app import create_app
from terrazzo.serve.models import Models
from terrazzo.serve.settings import Settings

KEY = "correct-horse"
TEXTS = ["the cat purrs", "a bird sings at night", "🧭 the river"]


@pytest.fixture(scope="module")
def running(folders, tmp_path_factory):
    """A server with a key on a free port of this machine; its address and its models."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    settings, held = Settings(api_key_file=keys, warm_up=False), SimpleNamespace()

    async def main():
        held.models = await Models.open([folders["moods"], folders["pairs"]], settings)
        app = create_app(held.models, settings)
        held.server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        await held.server.serve(sockets=[listener])
        await held.models.drain(5)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        held.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        until(lambda: httpx.get(f"{held.address}/health/ready", timeout=60).status_code == 200)
        yield held
        held.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.fixture
def client(running):
    with openai.OpenAI(base_url=f"{running.address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_clients_work_unchanged(client, offline):
    expected = offline["moods"].encode(TEXTS, normalize=True)
    packed = client.embeddings.create(model="moods", input=TEXTS)  # which the client asks for as base64
    floats = client.embeddings.create(model="moods", input=TEXTS, encoding_format="float")
    for reply in (packed, floats):
        np.testing.assert_allclose([item.embedding for item in reply.data], expected, atol=1e-5)
        assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
    short = client.embeddings.create(model="moods", input=TEXTS[0], dimensions=4).data[0].embedding
    np.testing.assert_allclose(short, expected[0, :4] / np.linalg.norm(expected[0, :4]), atol=1e-5)
    assert [model.id for model in client.models.list()] == ["moods", "pairs"]
    assert client.models.retrieve("pairs").id == "pairs"


def test_openai_clients_understand_refusals(client, running):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="mods", input="a")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
        client.embeddings.create(model="moods", input="a", dimensions=1000)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-horse").embeddings.create(model="moods", input="a")


def test_a_client_that_hangs_up_leaves_the_queue(running, monkeypatch):
    engine, begun, ended = running.models["moods"].engine, threading.Event(), threading.Event()

    async def submit(*_):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    monkeypatch.setattr(engine, "submit", submit)
    body = b'{"input": "a", "model": "moods"}'
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(running.address.rpartition(":")[2]))) as caller:
        caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert begun.wait(20)
    assert ended.wait(20)
    assert httpx.get(f"{running.address}/health/live").status_code == 200


def test_a_body_that_is_too_long_ends_the_connection(running):
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(running.address.rpartition(":")[2]))) as caller:
        caller.settimeout(20)
        caller.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        said = b""
        while part := caller.recv(4096):
            said += part
    assert said.startswith(b"HTTP/1.1 413 ") and b"body_too_large" in said
