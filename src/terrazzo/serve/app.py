"""The server's application: every endpoint, who may call it, what is counted and what is written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse

import terrazzo
from terrazzo.serve import routes_embeddings, routes_page, routes_rerank, routes_status, routes_tasks, routes_texts
from terrazzo.serve.documents import openapi, with_models
from terrazzo.serve.endpoints import Endpoint, Here, Operation, send_error, send_reply
from terrazzo.serve.errors import ApiError, api_error
from terrazzo.serve.keys import Keys
from terrazzo.serve.limits import ClientGone, Headers, Message, Receive, Scope, Send, check_key, checked_headers
from terrazzo.serve.logs import AccessLog
from terrazzo.serve.metrics import Metrics
from terrazzo.serve.models import Models
from terrazzo.serve.settings import Settings

#: The status that is counted where the client did not wait for one.
CLIENT_GONE = 499
#: Every endpoint but the page and the OpenAPI document.
OPERATIONS = (
    *routes_embeddings.OPERATIONS,
    *routes_rerank.OPERATIONS,
    *routes_tasks.OPERATIONS,
    *routes_texts.OPERATIONS,
    *routes_status.OPERATIONS,
)


def create_app(models: Models, settings: Settings | None = None) -> Server:
    """The application that answers for `models`; any ASGI server runs it.

    Args:
        models: their batches are counted from now on.
        settings: limits, API keys, the page; its address and budgets are for who runs the application.

    Raises:
        InputError: the API keys cannot be read.
    """
    settings, metrics = settings or Settings(), Metrics()
    metrics.watch(models)
    here = Here(models=models, settings=settings, metrics=metrics, started=time.time())
    return Server(here, Keys.read(settings.api_key_file))


class Server(FastAPI):
    """A FastAPI application whose own endpoints are found by their path and answered without a detour.

    Whatever is added to it as to any FastAPI application is answered by FastAPI, for those who know an API key.
    """

    def __init__(self, here: Here, keys: Keys) -> None:
        super().__init__(
            title="terrazzo", version=terrazzo.__version__, docs_url=None, redoc_url=None, openapi_url=None
        )
        self.here, self.keys, self._lines = here, keys, AccessLog()
        page = routes_page.operations() if here.settings.page else ()
        self._table = _Table((*OPERATIONS, _document_operation(self), *page), here)
        for kind in (HTTPException, RequestValidationError, Exception):
            self.add_exception_handler(kind, _error_reply)
        self._entry = self._serve if not here.settings.allow_origins else _with_origins(self._serve, here)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._entry(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; the names in it are those of the models that are served now."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi(OPERATIONS, self.routes, bool(self.keys))
        return with_models(self.openapi_schema, OPERATIONS, self.here.models)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, path = time.perf_counter(), _path(scope)
        route, endpoints, rest = self._table.find(path)
        try:
            headers = checked_headers(scope)
            if endpoints is None:
                check_key(self.keys, headers.get(b"authorization"))
                route, status = await self._others(scope, receive, send)
            else:
                status = await self._own(endpoints, rest, headers, scope, receive, send)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as error:
            status = await send_error(send, error)
        seconds = time.perf_counter() - began
        self.here.metrics.request(route, status, seconds)
        if self.here.settings.access_log == "json":
            self._lines.write(scope, path, status, seconds)

    async def _own(
        self,
        endpoints: Mapping[str, Endpoint],
        rest: str | None,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> int:
        method = scope["method"]
        endpoint = endpoints.get("GET" if method == "HEAD" else method)
        if endpoint is None or not endpoint.operation.open:
            check_key(self.keys, headers.get(b"authorization"))
        if endpoint is None:
            allowed = ", ".join([*endpoints, "HEAD"] if "GET" in endpoints else endpoints)
            raise ApiError(405, f"{method} is not for {scope['path']}: take {allowed}", headers={"Allow": allowed})
        status, body, media_type, further = await endpoint.answer(headers, receive, rest)
        await send_reply(send, status, body, media_type, further)
        return status

    async def _others(self, scope: Scope, receive: Receive, send: Send) -> tuple[str, int]:
        """What FastAPI answers; the route by its pattern, and the status."""
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await super().__call__(scope, receive, noting)
        route = scope.get("route")
        return route.path if isinstance(route, APIRoute) else "unmatched", status


class _Table:
    """Endpoints by path and method; those whose path ends in a name by what stands before it."""

    def __init__(self, operations: Iterable[Operation], here: Here) -> None:
        self._by_path: dict[str, dict[str, Endpoint]] = {}
        for operation in operations:
            self._by_path.setdefault(operation.path, {})[operation.method] = Endpoint(operation, here)
        self._named = {path: path[: path.index("{")] for path in self._by_path if "{" in path}

    def find(self, path: str) -> tuple[str, Mapping[str, Endpoint] | None, str | None]:
        """The route's pattern, its endpoints by method, None where there are none, and the name in the path."""
        endpoints = self._by_path.get(path)
        if endpoints is not None:
            return path, endpoints, None
        for route, before in self._named.items():
            if path.startswith(before) and len(path) > len(before):
                return route, self._by_path[route], path[len(before) :]
        return "unmatched", None, None


def _path(scope: Scope) -> str:
    path, root = scope["path"], scope.get("root_path")
    return path.removeprefix(root) if root else path


def _document_operation(server: Server) -> Operation:
    async def document(here: Here) -> dict[str, Any]:
        return await asyncio.to_thread(server.openapi)

    return Operation(path="/openapi.json", method="GET", run=document, reply=None, summary="", tag="")


def _with_origins(entry: Any, here: Here) -> CORSMiddleware:
    origins = list(here.settings.allow_origins)
    return CORSMiddleware(entry, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])


async def _error_reply(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI answers an error with: the shape of all others."""
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}"
        said = ApiError(error.status_code, message, headers=error.headers)
    elif isinstance(error, RequestValidationError):
        said = ApiError(422, "; ".join(item["msg"] for item in error.errors()))
    else:
        said = api_error(error)
    return JSONResponse(said.body(), said.status, said.headers)
