"""Vectors for texts, as OpenAI's clients ask for them.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from terrazzo.serve.endpoints import Here, Operation
from terrazzo.serve.errors import ApiError
from terrazzo.serve.replies import EmbeddingsReply
from terrazzo.serve.requests import Embeddings


async def embeddings(here: Here, body: Embeddings) -> dict[str, Any]:
    """One vector of length 1 a text, in the order of the texts, whatever else the server is doing.

    Token ids are those of this model, as /v1/tokenize gives them, with special ones around them or without. With
    `dimensions` a vector is cut and scaled back to length 1, which keeps its meaning only where a model was trained for
    it (Matryoshka).
    """
    model = here.model(body.model, "embed", ("embed",))
    inputs = inputs_of(body.input)
    here.check_count(len(inputs), "input")
    width = model.runtime.config.width
    if body.dimensions is not None and body.dimensions > width:
        message = f"dimensions: {body.dimensions}; the vectors of {model.name!r} have {width}"
        raise ApiError(422, message, param="dimensions")
    vectors_ND, usage = await model.embed(inputs, truncate=body.truncate, pooling=body.pooling)
    if body.dimensions is not None and body.dimensions < width:
        vectors_ND = shortened(vectors_ND, body.dimensions)
    encode = _base64 if body.encoding_format == "base64" else _same
    data = [{"object": "embedding", "index": i, "embedding": encode(row)} for i, row in enumerate(vectors_ND)]
    return {"object": "list", "data": data, "model": model.name, "usage": here.usage(model, usage)}


def inputs_of(given: str | list[Any]) -> list[Any]:
    """The inputs of a request: of one text or of one list of token ids a list of one."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def shortened(vectors_ND: np.ndarray, dimensions: int) -> np.ndarray:
    """The first dimensions, scaled to length 1."""
    kept_ND = np.ascontiguousarray(vectors_ND[:, :dimensions])
    lengths_N = np.linalg.norm(kept_ND, axis=1, keepdims=True)
    return kept_ND / np.maximum(lengths_N, np.finfo(np.float32).tiny)


def _base64(vector_D: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(vector_D, dtype="<f4").tobytes()).decode()


def _same(vector_D: np.ndarray) -> np.ndarray:
    return vector_D


OPERATIONS = tuple(
    Operation(
        path=path,
        run=embeddings,
        body=Embeddings,
        reply=EmbeddingsReply,
        summary="Vectors for texts",
        tag="Embeddings",
        abilities=("embed",),
    )
    for path in ("/v1/embeddings", "/embeddings")
)
