"""What the server is, how it is, and what it has done."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
from functools import cache
from typing import Any

import terrazzo
from terrazzo.nn.flops import parameter_count
from terrazzo.serve.endpoints import Answer, Here, Operation
from terrazzo.serve.errors import ApiError
from terrazzo.serve.limits import MAX_HEADER_BYTES
from terrazzo.serve.metrics import CONTENT_TYPE
from terrazzo.serve.models import Served
from terrazzo.serve.replies import Health, Info, ModelCard, ModelList
from terrazzo.serve.served import MAX_GUESSES
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.regression import RegressionTask

#: What a kind of task is called among the abilities: after the endpoint that answers it.
_ABILITIES = {"label": "classify", "pair": "classify", "multi": "classify", "regression": "regression", "span": "qa"}
_PACKAGES = ("torch", "tokenizers", "openvino", "onnxruntime", "fastapi", "uvicorn")


async def live(here: Here) -> Any:
    """The process answers. No model is asked, so that a busy server is not taken for a dead one."""
    return {"status": "live"}


async def ready(here: Here) -> Any:
    """Every model is loaded and warm; 503 while one is not, and when the server is about to stop."""
    reasons = _unready(here)
    if reasons:
        raise ApiError(503, "; ".join(reasons), code="not_ready", headers={"Retry-After": "1"})
    return {"status": "ready"}


async def models(here: Here) -> dict[str, Any]:
    """The models by the names that requests call them."""
    return {"object": "list", "data": [card(model) for model in here.models]}


async def one_model(here: Here, name: str) -> dict[str, Any]:
    """One model by its name."""
    return card(here.named(name))


async def info(here: Here) -> dict[str, Any]:
    """Versions and limits of the server; abilities, classes, limits, runtime and fingerprint of every model."""
    settings = here.settings
    return {
        "name": "terrazzo",
        "version": terrazzo.__version__,
        "versions": _versions(),
        "started": here.started,
        "ready": not _unready(here),
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_texts": settings.max_texts,
            "max_guesses": MAX_GUESSES,
            "max_header_bytes": MAX_HEADER_BYTES,
        },
        "models": [model_info(model) for model in here.models],
    }


async def metrics(here: Here) -> Answer:
    """Prometheus' text format: requests, seconds, queues, batches, tokens."""
    return Answer(body=await asyncio.to_thread(here.metrics.render), media_type=CONTENT_TYPE)


def card(model: Served) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": "terrazzo",
        "abilities": abilities(model),
    }


def abilities(model: Served) -> list[str]:
    """What a model can be asked for, by the endpoint."""
    return list(dict.fromkeys(_ABILITIES.get(ability, ability) for ability in model.abilities))


def model_info(model: Served) -> dict[str, Any]:
    """A model in full."""
    loaded, config, limits = model.loaded, model.runtime.config, model.limits
    task = None if loaded.head is None else loaded.head.task
    return {
        "name": model.name,
        "abilities": abilities(model),
        "kind": None if task is None else task.kind,
        "pair": isinstance(task, LabelTask) and task.kind == "pair" or isinstance(task, RegressionTask) and task.pair,
        "labels": list(model.labels),
        "problems": list(model.problems),
        "mask": None if loaded.fill is None else loaded.tokenizer.id_to_token(loaded.mask_id),
        "width": config.width,
        "max_len": limits.max_len,
        "parameters": parameter_count(config),
        "runtime": model.runtime.name,
        "precision": model.runtime.precision,
        "batch_tokens": limits.batch_tokens,
        "queue_tokens": limits.queue_tokens,
        "queued_tokens": model.engine.queued_tokens,
        "fingerprint": model.fingerprint,
        "loaded": model.loaded_at,
    }


def _unready(here: Here) -> list[str]:
    return [f"{name}: {why}" for name, why in here.models.ready().items() if why is not None]


@cache
def _versions() -> dict[str, str]:
    installed = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **{name: said for name, said in installed.items() if said}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


OPERATIONS = (
    Operation(
        path="/health/live",
        method="GET",
        run=live,
        reply=Health,
        summary="Is the process alive",
        tag="Server",
        open=True,
    ),
    Operation(
        path="/health/ready",
        method="GET",
        run=ready,
        reply=Health,
        summary="May requests be sent",
        tag="Server",
        open=True,
        errors=(503,),
    ),
    Operation(path="/v1/models", method="GET", run=models, reply=ModelList, summary="The models", tag="Server"),
    Operation(
        path="/v1/models/{model}",
        method="GET",
        run=one_model,
        reply=ModelCard,
        summary="One model",
        tag="Server",
        errors=(404,),
    ),
    Operation(path="/info", method="GET", run=info, reply=Info, summary="The server in full", tag="Server"),
    Operation(
        path="/metrics",
        method="GET",
        run=metrics,
        reply=None,
        summary="Figures for Prometheus",
        tag="Server",
        media_type="text/plain",
    ),
)
