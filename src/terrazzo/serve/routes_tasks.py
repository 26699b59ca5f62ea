"""What fine-tuned heads say: classes and values, tags, answers to questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from terrazzo.serve.endpoints import Here, Operation
from terrazzo.serve.errors import ApiError, error_dict
from terrazzo.serve.models import Served
from terrazzo.serve.offsets import shifted
from terrazzo.serve.replies import (
    AnswerResult,
    ClassifyReply,
    ClassResult,
    QuestionReply,
    ScoreList,
    TagReply,
    TagResult,
)
from terrazzo.serve.requests import Classify, PairRow, Predict, Question, Tag, TextRow, WordsRow, as_list
from terrazzo.tasks import BadRow, Result
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.regression import RegressionTask

CLASSES = ("label", "pair", "multi", "regression")
_SMALLEST = 1e-300


async def classify(here: Here, body: Classify) -> dict[str, Any]:
    """The likeliest class of each input with the scores of all, or the value that the model gives.

    A row of a list that cannot be answered has an `error` in its place and stops nothing.
    """
    model = here.model(body.model, "classify", CLASSES)
    if body.problem is not None and not model.problems:
        raise ApiError(422, _no_problems(model), param="problem")
    rows = [row_of(item, body.problem, model) for item in as_list(body.input)]
    results, usage = await _predict(here, model, body, rows)
    data = [_class(i, result, body.top_k, body.raw_scores) for i, result in enumerate(results)]
    return _list(model, data, usage)


async def predict(here: Here, body: Predict) -> list[Any]:
    """Classes with scores as text-embeddings-inference gives them: of one input a list, of several a list of lists."""
    alone = isinstance(body.inputs, (str, tuple))
    items = [body.inputs] if alone else body.inputs
    model = here.model(body.model, "classify", CLASSES)
    rows = [row_of(item[0] if isinstance(item, tuple) and len(item) == 1 else item, None, model) for item in items]
    results, _ = await _predict(here, model, body, rows, "inputs")
    for index, result in enumerate(results):
        if result.error is not None:
            raise _unanswered(result.error, f"inputs.{index}")
    lists = [
        _scores(result, None, body.raw_scores) or [{"label": "score", "score": result.score}] for result in results
    ]
    return lists[0] if alone else lists


async def tag(here: Here, body: Tag) -> dict[str, Any]:
    """The stretches of each text that the model names, with their place, label and probability.

    `start` and `end` count Unicode code points, as Python's strings do; with `"offsets": "utf16"` they count UTF-16
    units, as those of JavaScript, Java and C# do.
    """
    items = as_list(body.input)
    rows = [{"tokens": item.tokens} if isinstance(item, WordsRow) else item for item in items]
    model = here.model(body.model, "tag", ("tag",))
    results, usage = await _predict(here, model, body, rows)
    data = []
    for index, (item, result) in enumerate(zip(items, results, strict=True)):
        words = isinstance(item, WordsRow)
        text = " ".join(token.strip() for token in item.tokens) if words else item
        data.append(_tagged(index, text, result, words, body.offsets))
    return _list(model, data, usage)


async def question(here: Here, body: Question) -> dict[str, Any]:
    """The stretch of each context that answers its question, or null where the model finds none in it."""
    rows = [{"question": row.question, "context": row.context} for row in body.input]
    rows = rows or [{"question": body.question, "context": body.context}]
    alone = not body.input
    model = here.model(body.model, "answer questions", ("span",))
    results, usage = await _predict(here, model, body, rows, alone=alone)
    data = [_answered(i, rows[i]["context"], result, body.offsets) for i, result in enumerate(results)]
    return _list(model, data, usage)


def row_of(item: Any, problem: str | None, model: Served) -> Any:
    """One input as `Predictor` takes it: a text, two texts, or the fields of a row; bad with a text or a problem too
    many, or a text too few.
    """
    pair = isinstance(item, (tuple, PairRow))
    if _reads_pairs(model) not in (None, pair):
        told = ("a pair", "single texts") if pair else ("one text", "pairs")
        return BadRow(where="", message=f"{told[0]}, but {model.name!r} reads {told[1]}")
    if isinstance(item, (TextRow, PairRow)):
        if item.problem is not None and not model.problems:
            return BadRow(where="", message=_no_problems(model))
        own = item.model_dump(exclude_none=True)
        return own if problem is None else {"problem": problem, **own}
    if problem is None:
        return item
    texts = {"text": item} if isinstance(item, str) else dict(zip("ab", item, strict=True))
    return {"problem": problem, **texts}


async def _predict(
    here: Here, model: Served, body: Any, rows: Sequence[Any], param: str = "input", alone: bool | None = None
) -> tuple[list[Result], dict[str, int]]:
    """The model's results and the usage; a request of one bare row that cannot be answered is refused."""
    here.check_count(len(rows), param)
    results, usage = await model.predict(rows, truncate=body.truncate)
    bare = not isinstance(getattr(body, param), list) if alone is None else alone
    if bare and results[0].error is not None:
        raise _unanswered(results[0].error, param)
    return results, here.usage(model, usage)


def _reads_pairs(model: Served) -> bool | None:
    """Whether a row of the model's task has two texts; None where it may."""
    if isinstance(model.task, LabelTask):
        return model.task.kind == "pair"
    return model.task.pair if isinstance(model.task, RegressionTask) else None


def _no_problems(model: Served) -> str:
    return f"model {model.name!r} solves one problem, which has no name: leave 'problem' out"


def _unanswered(message: str, param: str) -> ApiError:
    return ApiError(422, message, param=param, code="unusable_input")


def _list(model: Served, data: list[Any], usage: dict[str, int]) -> dict[str, Any]:
    return {"object": "list", "data": data, "model": model.name, "usage": usage}


def _error(kind: type[BaseModel], index: int, message: str) -> dict[str, Any]:
    """A row that cannot be answered: every key of the others, and why."""
    error = error_dict(message, "invalid_request_error", f"input.{index}", "unusable_input")
    nothing = {name: field.default for name, field in kind.model_fields.items()}
    return {**nothing, "index": index, "error": error}


def _class(index: int, result: Result, top_k: int | None, raw: bool) -> dict[str, Any]:
    if result.error is not None:
        return _error(ClassResult, index, result.error)
    scores = _scores(result, top_k, raw)
    score = scores[0]["score"] if scores else result.score
    labels = None if result.labels is None else list(result.labels)
    said = {"label": result.label, "score": score, "labels": labels, "scores": scores}
    return {"index": index, **said, "truncated": result.truncated, "error": None}


def _scores(result: Result, top_k: int | None, raw: bool) -> list[dict[str, Any]] | None:
    if result.probabilities is None:
        return None
    several = result.labels is not None
    best = list(result.probabilities.items())[:top_k]
    return [{"label": label, "score": _raw(p, several) if raw else p} for label, p in best]


def _raw(probability: float, several: bool) -> float:
    """What softmax, or of several classes sigmoid, makes the probability of."""
    log_p = math.log(max(probability, _SMALLEST))
    return log_p - math.log(max(1 - probability, 2**-53)) if several else log_p


def _tagged(index: int, text: str, result: Result, words: bool, offsets: str) -> dict[str, Any]:
    if result.error is not None:
        return _error(TagResult, index, result.error)
    places = shifted(text, [(span.start, span.end) for span in result.spans or ()], offsets)
    spans = [
        {"start": start, "end": end, "label": span.label, "score": span.score, "text": span.text}
        for (start, end), span in zip(places, result.spans or (), strict=True)
    ]
    tags = list(result.tags) if words and result.tags is not None else None
    return {"index": index, "spans": spans, "tags": tags, "truncated": result.truncated, "error": None}


def _answered(index: int, context: str, result: Result, offsets: str) -> dict[str, Any]:
    if result.error is not None:
        return _error(AnswerResult, index, result.error)
    said: Mapping[str, Any] = {"answer": None, "start": None, "end": None}
    if result.spans:
        span = result.spans[0]
        ((start, end),) = shifted(context, [(span.start, span.end)], offsets)
        said = {"answer": span.text, "start": start, "end": end}
    return {"index": index, **said, "score": result.score, "truncated": result.truncated, "error": None}


OPERATIONS = (
    Operation(
        path="/v1/classify",
        run=classify,
        body=Classify,
        reply=ClassifyReply,
        summary="Classes or values of texts",
        tag="Tasks",
        abilities=CLASSES,
    ),
    Operation(
        path="/predict",
        run=predict,
        body=Predict,
        reply=ScoreList,
        summary="Classes of texts, as text-embeddings-inference gives them",
        tag="Tasks",
        abilities=CLASSES,
    ),
    Operation(
        path="/v1/tag",
        run=tag,
        body=Tag,
        reply=TagReply,
        summary="Named stretches of texts",
        tag="Tasks",
        abilities=("tag",),
    ),
    Operation(
        path="/v1/qa",
        run=question,
        body=Question,
        reply=QuestionReply,
        summary="Answers to questions about texts",
        tag="Tasks",
        abilities=("span",),
    ),
)
