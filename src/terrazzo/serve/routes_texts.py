"""Masks filled in, and texts cut into tokens."""

from __future__ import annotations

from typing import Any

from terrazzo.serve.endpoints import Here, Operation, usage_dict
from terrazzo.serve.models import Usage
from terrazzo.serve.offsets import shifted
from terrazzo.serve.replies import FillMaskReply, TokenizeReply
from terrazzo.serve.requests import FillMask, Tokenize, as_list


async def fill_mask(here: Here, body: FillMask) -> dict[str, Any]:
    """For every mask token of every text the likeliest tokens, best first; /info says what the mask is called."""
    model = here.model(body.model, "fill masks", ("fill_mask",))
    texts = as_list(body.input)
    here.check_count(len(texts), "input")
    filled, usage = await model.fill_mask(texts, top_k=body.top_k, truncate=body.truncate)
    data = [{"index": index, "masks": masks} for index, masks in enumerate(filled)]
    return {"object": "list", "data": data, "model": model.name, "usage": here.usage(model, usage)}


async def tokenize(here: Here, body: Tokenize) -> dict[str, Any]:
    """Ids and tokens of each text, uncut, and their places in it; /v1/embeddings takes the ids as its input."""
    model = here.model(body.model, "tokenize", ("embed",))
    texts = as_list(body.input)
    here.check_count(len(texts), "input")
    cut = await model.tokenize(texts, special=body.add_special_tokens)
    data = [
        {"index": i, "ids": one.ids, "tokens": one.tokens, "offsets": shifted(text, one.offsets, body.offsets)}
        for i, (text, one) in enumerate(zip(texts, cut, strict=True))
    ]
    usage = Usage(tokens=tuple(len(one.ids) for one in cut), truncated=(0,) * len(cut))
    return {"object": "list", "data": data, "model": model.name, "usage": usage_dict(usage)}


OPERATIONS = (
    Operation(
        path="/v1/fill_mask",
        run=fill_mask,
        body=FillMask,
        reply=FillMaskReply,
        summary="Guesses for masked tokens",
        tag="Tokens",
        abilities=("fill_mask",),
    ),
    Operation(
        path="/v1/tokenize",
        run=tokenize,
        body=Tokenize,
        reply=TokenizeReply,
        summary="Tokens of texts",
        tag="Tokens",
        abilities=("embed",),
    ),
)
