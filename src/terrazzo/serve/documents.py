"""The OpenAPI document: every endpoint with its body, its reply, its errors, and the models that it may name."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

import terrazzo
from terrazzo.serve.endpoints import Operation
from terrazzo.serve.models import Served
from terrazzo.serve.replies import Error

_ABOUT = """Embeddings, classes, tags, answers and rankings from one's own encoders.

Every reply that is no success is `{"error": {"message", "type", "param", "code"}}`. Texts beyond what a model reads are
cut and counted in `usage`; `"truncate": false` refuses them instead.
"""
_MEANINGS = {
    400: "The body is no JSON, or the model cannot do what was asked.",
    401: "No API key, or one that is not known here.",
    404: "There is no model of that name; the message lists those that there are.",
    408: "The body took too long to arrive.",
    413: "The body has too many bytes.",
    415: "The body is of another type than application/json.",
    422: "A field is wrong; `param` says which.",
    429: "Too much is waiting; Retry-After says in how many seconds to come back.",
    431: "The headers have too many bytes.",
    500: "The server failed; its log says why.",
    503: "The server is not ready yet, or about to stop.",
}
_OF_BODIES = (400, 404, 408, 413, 415, 422, 429, 503)
_SECURITY = {"API key": {"type": "http", "scheme": "bearer"}}


def openapi(operations: Iterable[Operation], others: Sequence[BaseRoute], keys: bool) -> dict[str, Any]:
    """The document of `operations` and of other FastAPI routes; `keys` are needed by those that are not open."""
    shown = [operation for operation in operations if operation.summary]
    routes = [*(_route(operation, keys) for operation in shown), *others]
    made = get_openapi(title="terrazzo", version=terrazzo.__version__, description=_ABOUT, routes=routes)
    if keys:
        made.setdefault("components", {})["securitySchemes"] = _SECURITY
    return made


def with_models(made: dict[str, Any], operations: Iterable[Operation], models: Iterable[Served]) -> dict[str, Any]:
    """The document with the names that each body's `model` may be, as of now."""
    made, served = copy.deepcopy(made), list(models)
    for operation in operations:
        if operation.body is None or not operation.abilities:
            continue
        able = [model.name for model in served if set(operation.abilities) & set(model.abilities)]
        schema = made["components"]["schemas"][operation.body.__name__]
        choices: list[dict[str, Any]] = [{"type": "string", "enum": able}] if able else []
        if len(able) > 1:
            schema["required"] = sorted({*schema.get("required", ()), "model"})
        schema["properties"]["model"]["anyOf"] = choices if len(able) > 1 else [*choices, {"type": "null"}]
    return made


def _route(operation: Operation, keys: bool) -> APIRoute:
    """A route that exists to be documented."""
    statuses = (*(_OF_BODIES if operation.body else ()), *operation.errors, 431, 500)
    statuses = (*statuses, *((401,) if keys and not operation.open else ()))
    responses: dict[int | str, dict[str, Any]] = {status: _error(status) for status in sorted(set(statuses))}
    if operation.reply is None:
        responses[200] = {"content": {operation.media_type: {"schema": {"type": "string"}}}}
    return APIRoute(
        operation.path,
        _signature(operation),
        methods=[operation.method],
        response_model=operation.reply,
        responses=responses,
        response_description="The answer.",
        summary=operation.summary,
        description=inspect.getdoc(operation.run),
        tags=[operation.tag],
        operation_id=re.sub(r"\W+", "_", operation.path).strip("_"),
        openapi_extra={"security": [{"API key": []}]} if keys and not operation.open else None,
    )


def _error(status: int) -> dict[str, Any]:
    said: dict[str, Any] = {"model": Error, "description": _MEANINGS[status]}
    if status in (429, 503):
        said["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return said


def _signature(operation: Operation) -> Any:
    """A function whose parameters are those of the operation."""

    async def documented(*_: Any) -> None:
        raise AssertionError("exists to be documented")

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given: dict[str, Any] = {} if operation.body is None else {"body": operation.body}
    if "{" in operation.path:
        given[operation.path.partition("{")[2].rstrip("}")] = str
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in given.items()]
    documented.__dict__["__signature__"] = inspect.Signature(parameters)
    return documented
