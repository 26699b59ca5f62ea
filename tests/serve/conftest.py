from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest

import terrazzo
from terrazzo.checkpoint import save_model
from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.nn import MaskedLM, mosaicbert
from terrazzo.serve import replies
from terrazzo.serve.app import OPERATIONS, create_app
from terrazzo.serve.models import Models
from terrazzo.serve.settings import Settings
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.span import SpanTask
from terrazzo.tasks.tag import TagTask
from terrazzo.testing import TINY_MODEL, tiny_task_folder, tiny_texts

TASKS = {
    "moods": LabelTask(classes=("calm", "wild", "odd")),
    "topics": LabelTask(classes=("cats", "dogs"), several=True, threshold=0.3),
    "pairs": LabelTask(kind="pair", classes=("no", "yes")),
    "values": RegressionTask(mean=3.0, std=2.0),
    "desk": MultiTask(
        problems=(Problem(name="mood", classes=("calm", "wild")), Problem(name="size", classes=("s", "l")))
    ),
    "tags": TagTask(labels=("LOC", "PER")),
    "answers": SpanTask(unanswerable=True),
}
REPLIES = {operation.path: operation.reply for operation in OPERATIONS}


def call(app, path, body=None, method=None, **options):
    """One request to an application in this process; its reply is held to the documented schema."""
    keyword = "content" if isinstance(body, bytes) else "json"
    if body is not None:
        options[keyword] = body
        options["headers"] = {"content-type": "application/json", **options.get("headers", {})}

    async def request():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method or ("GET" if body is None else "POST"), path, **options)

    reply = asyncio.run(request())
    schema = REPLIES.get(path) if reply.status_code == 200 else replies.Error
    if schema is not None and reply.content:
        schema.model_validate_json(reply.content, strict=True)
    return reply


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A model folder of every kind, and one that fills masks."""
    root = tmp_path_factory.mktemp("served")
    made = {name: tiny_task_folder(root / name, task) for name, task in TASKS.items()}
    tokenizer = train_tokenizer(lambda: tiny_texts(50), "wordpiece", 256, shrink=True)
    tokenizer.save(str(root / "tokenizer.json"))
    fields = {name: TINY_MODEL[name] for name in ("width", "depth", "num_heads", "mlp_width", "max_len")}
    network = MaskedLM(mosaicbert("tiny", tokenizer.get_vocab_size(), **fields))
    return made | {"masks": save_model(root / "masks", network, root / "tokenizer.json")}


@pytest.fixture(scope="session")
def offline(folders):
    """The same models as `terrazzo.load` opens them."""
    return {name: terrazzo.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def models(folders):
    opened = asyncio.run(Models.open(list(folders.values()), Settings(warm_up=False)))
    yield opened
    asyncio.run(opened.drain(5))


def client_of(app):
    """How tests ask an application: `post(path, **body)`, `raw(path, body)`, `get(path)`."""
    return SimpleNamespace(
        app=app,
        post=lambda path, **body: call(app, path, body),
        raw=lambda path, body, **options: call(app, path, body, **options),
        get=lambda path, **options: call(app, path, **options),
    )


@pytest.fixture(scope="session")
def server(models):
    """An application that serves them all: see `client_of`."""
    return client_of(create_app(models))


@pytest.fixture
def server_with(models):
    """Another application for the same models, with settings of its own."""

    def create(**settings):
        made = client_of(create_app(models, Settings(**settings)))
        created.append(made.app.here.metrics.batch)
        return made

    created: list = []
    yield create
    for hook in created:
        models.hooks.remove(hook)
