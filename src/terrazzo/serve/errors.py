"""What goes wrong in a request, as OpenAI shapes it: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.serve.engine import Draining, QueueFull
from terrazzo.serve.models import CannotDo, TooLong, TooManyGuesses, UnknownModel

log = logging.getLogger("terrazzo.serve")

#: Codes of errors that have one status everywhere.
CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_value",
    429: "queue_full",
    431: "headers_too_large",
    500: "internal_error",
    503: "unavailable",
}
#: Wrong fields of one body beyond which none is told.
_MANY = 100
#: Bytes of a body that is read again for the place of what is wrong in it; of longer ones the field is told alone.
_READ_AGAIN = 2**20
#: What would have been right, by pydantic's name of what is wrong: in this order they are told.
_WANTED = {
    "string_type": "a text",
    "tuple_type": "a pair",
    "list_type": "a list",
    "model_type": "an object",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
#: Characters of a field's path that are told.
_LONGEST_PATH = 200


class ApiError(Exception):
    """An answer that is no success.

    Args:
        status: of the HTTP reply.
        message: what is wrong, and the mend.
        param: path of the field that is wrong, such as "input.3".
        code: a short name for programs; None takes the usual one of the status.
        headers: of the reply, beside its usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status, "error")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The reply's JSON."""
        return {"error": error_dict(self.message, _type(self.status), self.param, self.code)}


def error_dict(message: str, type: str, param: str | None, code: str) -> dict[str, Any]:
    """The object behind "error", in replies and in the place of single rows."""
    return {"message": message, "type": type, "param": param, "code": code}


def api_error(error: Exception) -> ApiError:
    """The answer to whatever a request raised; what nobody foresaw is logged and told without its traceback."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        seconds = max(1, math.ceil(error.retry_after))
        return ApiError(429, str(error), headers={"Retry-After": str(seconds)})
    if isinstance(error, Draining):
        return ApiError(503, str(error), code="draining", headers={"Retry-After": "1"})
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, CannotDo):
        return ApiError(400, str(error), param="model", code="model_cannot_do")
    if isinstance(error, TooLong):
        return ApiError(422, str(error), param=f"input.{error.index}", code="too_long")
    if isinstance(error, TooManyGuesses):
        return ApiError(422, str(error), param="top_k", code="too_many_guesses")
    if isinstance(error, InputError):
        return ApiError(422, str(error))
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why")


def invalid_body(error: ValidationError, body: bytes, model: type[BaseModel]) -> ApiError:
    """What a body that is no JSON (400) or has wrong fields (422) is answered with; the first wrong field is named."""
    if error.error_count() > _MANY:
        return ApiError(422, f"{error.error_count():,} fields are unknown or wrong", param="body")
    items = error.errors(include_url=False)
    if items[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {items[0]['ctx']['error']}", code="invalid_json")
    if items[0]["type"] == "model_type" and not items[0]["loc"]:
        return ApiError(422, f"the body must be a JSON object, not {body[:20]!r}", param="body")
    document = json.loads(body) if len(body) <= _READ_AGAIN else {}
    # Of a union the branch that went furthest; a field that is misspelt tells more than that it is missing.
    item = max(items, key=lambda item: (len(_path(item, document)), item["type"] == "extra_forbidden"))
    path = _path(item, document)
    param = ".".join(map(str, path))[:_LONGEST_PATH] or None
    if item["type"] == "extra_forbidden":
        known = nearest(str(path[-1])[:_LONGEST_PATH], model.model_fields) if len(path) == 1 else "leave it out"
        return ApiError(422, f"unknown field {param!r}: {known}", param=param, code="unknown_field")
    if item["type"] == "missing":
        return ApiError(422, f"the field {param!r} is missing", param=param, code="missing_field")
    message = _message(path, [other for other in items if _path(other, document) == path])
    return ApiError(422, f"{param}: {message}" if param else message, param=param)


def _message(path: Sequence[Any], items: Sequence[Any]) -> str:
    types = {item["type"] for item in items}
    # Of a union the branch for values of this type says more than that others want another type.
    told = [item for item in items if item["type"] not in _WANTED]
    message = "; or ".join(dict.fromkeys(item["msg"].removeprefix("Value error, ") for item in told))
    message = message or f"write {_either([words for name, words in _WANTED.items() if name in types])}"
    value = items[0]["input"]
    return f"{message} (got {json.dumps(value):.60})" if path and not isinstance(value, (dict, list)) else message


def _either(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _path(item: Any, document: Any) -> list[Any]:
    """Where in the document an error is: its location without the names of a union's branches."""
    path, node = [], document
    for place, part in enumerate(item["loc"]):
        inside = isinstance(part, int) and isinstance(node, list) and part < len(node)
        if inside or (isinstance(node, dict) and part in node):
            path.append(part)
            node = node[part]
        elif item["type"] == "missing" and place == len(item["loc"]) - 1:
            path.append(part)
    return path or list(item["loc"][:1])


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
