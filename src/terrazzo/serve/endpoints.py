"""From an HTTP request to a function and back, with as little as possible in between.

FastAPI documents the endpoints; it takes no part in answering them, which makes a request much cheaper.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from terrazzo.serve.errors import ApiError, api_error, invalid_body
from terrazzo.serve.limits import ClientGone, Headers, Receive, Send, check_json, read_body
from terrazzo.serve.metrics import Metrics
from terrazzo.serve.models import CannotDo, Models, Served, UnknownModel, Usage
from terrazzo.serve.settings import Settings

#: What replies are written with: vectors as they are in memory.
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply that is no JSON, or has headers or a status of its own."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Here:
    """What endpoints work with."""

    models: Models
    settings: Settings
    metrics: Metrics
    started: float

    def model(self, name: str | None, what: str, abilities: tuple[str, ...]) -> Served:
        """The model of that name, or the only one that has one of `abilities` where none is named.

        Raises:
            UnknownModel: there is none of that name.
            CannotDo: it has not the ability; the message names those that have.
            ApiError: none is named and several could be meant.
        """
        able = [model for model in self.models if set(abilities) & set(model.abilities)]
        names = ", ".join(sorted(model.name for model in able))
        if name is not None:
            model = self.named(name)
            if not set(abilities) & set(model.abilities):
                raise CannotDo(
                    f"model {name!r} cannot {what}; {f'these can: {names}' if names else 'no model here can'}"
                )
            return model
        if not able:
            raise CannotDo(f"no model here can {what}")
        if len(able) > 1:
            message = f"several models can {what}: {names}; say which with the field 'model'"
            raise ApiError(422, message, param="model", code="missing_field")
        return able[0]

    def named(self, name: str) -> Served:
        """The model of that name.

        Raises:
            UnknownModel: there is none; the message names all that there are.
        """
        names = sorted(model.name for model in self.models)
        if name in names:
            return self.models[name]
        close = difflib.get_close_matches(name[:80], names, n=1, cutoff=0.5)
        meant = f": did you mean {close[0]!r}?" if close else ";"
        raise UnknownModel(f"no model {name!r:.80} here{meant} served: {', '.join(names)}")

    def usage(self, model: Served, usage: Usage) -> dict[str, int]:
        """The usage of a reply, counted."""
        self.metrics.usage(model.name, usage)
        return usage_dict(usage)

    def check_count(self, count: int, param: str) -> None:
        """Refuse more inputs than a request may have.

        Raises:
            ApiError: 422 naming the limit.
        """
        if count > self.settings.max_texts:
            message = f"{param}: {count:,} entries; a request may have {self.settings.max_texts:,}: send several"
            raise ApiError(422, message, param=param, code="too_many_inputs")


def usage_dict(usage: Usage) -> dict[str, int]:
    """Token counts as OpenAI names them, and what was cut."""
    tokens = sum(usage.tokens)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "truncated_inputs": sum(map(bool, usage.truncated)),
        "truncated_tokens": sum(usage.truncated),
    }


#: A function of the server and of a body, or of the server alone.
Run = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One endpoint.

    Args:
        path, method: where it is; a path may end in a `{name}`.
        run: `await run(here, body)`, or of the name or of nothing more, gives what is written as JSON, or an `Answer`.
        body, reply: their schemas; a reply without one is a text.
        summary, tag: for the documentation, which takes `run`'s docstring for the rest; without them it is left out.
        errors: statuses that it may answer with beside the usual ones.
        abilities: of which a model must have one to be named in the body.
        media_type: of the reply.
        open: whether it needs no API key.
    """

    path: str
    run: Run
    reply: type[BaseModel] | None
    summary: str
    tag: str
    method: str = "POST"
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    abilities: tuple[str, ...] = ()
    media_type: str = "application/json"
    open: bool = False


class Endpoint:
    """An operation ready to answer requests."""

    def __init__(self, operation: Operation, here: Here) -> None:
        self.operation, self.here = operation, here
        self._limit = here.settings.max_body_bytes
        self._body = None if operation.body is None else TypeAdapter(operation.body)

    async def answer(
        self, headers: Headers, receive: Receive, rest: str | None = None
    ) -> tuple[int, bytes, str, Mapping[str, str]]:
        """Status, body, media type and further headers of the reply; `rest` is the name that the path ends in.

        Raises:
            ApiError: the request cannot be answered.
            ClientGone: nobody waits for it.
        """
        if self._body is None:
            result = await self.operation.run(self.here, *([] if rest is None else [rest]))
        else:
            check_json(headers.get(b"content-type"))
            body = await read_body(receive, headers.get(b"content-length"), self._limit)
            result = await while_there(self.operation.run(self.here, self._parse(body)), receive)
        if isinstance(result, Answer):
            return result.status, result.body, result.media_type, result.headers
        return 200, orjson.dumps(result, option=_OPTIONS), "application/json", {}

    def _parse(self, body: bytes) -> Any:
        assert self._body is not None and self.operation.body is not None
        try:
            return self._body.validate_json(body)
        except ValidationError as error:
            raise invalid_body(error, body, self.operation.body) from None


async def while_there(work: Coroutine[Any, Any, Any], receive: Receive) -> Any:
    """What `work` gives; it is cancelled when the client leaves.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher = asyncio.create_task(_cancel_when_gone(receive, task))
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def send_reply(send: Send, status: int, body: bytes, media_type: str, headers: Mapping[str, str]) -> None:
    """A whole reply."""
    raw = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    raw += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: Exception) -> int:
    """The reply to an error; its status."""
    said = api_error(error)
    try:
        body = orjson.dumps(said.body())
    except TypeError:  # half a surrogate pair, which is no Unicode but has an escape
        body = json.dumps(said.body()).encode()
    await send_reply(send, said.status, body, "application/json", said.headers)
    return said.status
