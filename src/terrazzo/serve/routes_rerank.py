"""Documents in the order in which they answer a query, as the clients of Cohere and Jina ask for it."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from terrazzo.serve.endpoints import Here, Operation
from terrazzo.serve.replies import RerankReply
from terrazzo.serve.requests import Document, Rerank


async def rerank(here: Here, body: Rerank) -> dict[str, Any]:
    """The documents' scores, best first; `index` is the document's place in the request.

    A model of pairs scores query and document together; an embedding model gives the cosine of their vectors.
    """
    model = here.model(body.model, "rerank", ("rerank",))
    here.check_count(len(body.documents), "documents")
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    scores_N, usage = await model.rerank(body.query, texts, truncate=body.truncate)
    best = np.argsort(-scores_N, kind="stable")[: body.top_n].tolist()
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": float(scores_N[i])} for i in best]
    if body.return_documents:
        for result in results:
            result["document"] = _document(body.documents[result["index"]])
    return {
        "id": uuid.uuid4().hex,
        "model": model.name,
        "results": results,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        "usage": here.usage(model, usage),
    }


def _document(document: str | Document) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document.model_dump()


OPERATIONS = tuple(
    Operation(
        path=path,
        run=rerank,
        body=Rerank,
        reply=RerankReply,
        summary="Documents in the order in which they answer a query",
        tag="Ranking",
        abilities=("rerank",),
    )
    for path in ("/v1/rerank", "/v2/rerank", "/rerank")
)
