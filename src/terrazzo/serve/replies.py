"""What each endpoint answers: the document of it, which replies are held to in the tests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel


class Reply(BaseModel):
    """A reply's JSON object."""

    model_config = ConfigDict(extra="forbid")


class ErrorObject(Reply):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: Annotated[str | None, Field(description="The field that is wrong, such as input.3.")]
    code: Annotated[str, Field(description="A short name for programs.")]


class Error(Reply):
    """Every reply that is no success."""

    error: ErrorObject


class UsageReply(Reply):
    """Tokens that were read, special ones included, and those that were cut."""

    prompt_tokens: int
    total_tokens: int
    truncated_inputs: Annotated[int, Field(description="Inputs that were cut.")]
    truncated_tokens: Annotated[int, Field(description="Tokens that were not read.")]


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float] | str, Field(description="Of length 1; a string is base64 of float32.")]


class EmbeddingsReply(Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: UsageReply


class RerankResult(Reply):
    index: Annotated[int, Field(description="Of the document in the request.")]
    relevance_score: Annotated[float, Field(description="The higher the better.")]
    document: Annotated[dict[str, object] | None, Field(description="Where return_documents asks for it.")] = None


class ApiVersion(Reply):
    version: str


class BilledUnits(Reply):
    search_units: int


class RerankMeta(Reply):
    api_version: ApiVersion
    billed_units: BilledUnits


class RerankReply(Reply):
    id: str
    model: str
    results: Annotated[list[RerankResult], Field(description="Best first.")]
    meta: RerankMeta
    usage: UsageReply


class LabelScore(Reply):
    label: str
    score: float


class ClassResult(Reply):
    """The answer for one input; with `error` there is none."""

    index: int
    label: Annotated[str | None, Field(description="The likeliest class; null for values.")] = None
    score: Annotated[float | None, Field(description="Of `label`, or the value.")] = None
    labels: Annotated[list[str] | None, Field(description="Those above the threshold, for several classes.")] = None
    scores: Annotated[list[LabelScore] | None, Field(description="Likeliest first, the best top_k.")] = None
    truncated: Annotated[int, Field(description="Tokens of the input that were not read.")] = 0
    error: ErrorObject | None = None


class ClassifyReply(Reply):
    object: Literal["list"]
    data: list[ClassResult]
    model: str
    usage: UsageReply


class TagSpan(Reply):
    start: int
    end: Annotated[int, Field(description="One past the last character.")]
    label: str
    score: float
    text: str


class TagResult(Reply):
    """The stretches of one input; with `error` there are none."""

    index: int
    spans: list[TagSpan] | None = None
    tags: Annotated[list[str] | None, Field(description="One a word, for inputs that came as tokens.")] = None
    truncated: int = 0
    error: ErrorObject | None = None


class TagReply(Reply):
    object: Literal["list"]
    data: list[TagResult]
    model: str
    usage: UsageReply


class AnswerResult(Reply):
    """The answer to one question; with `error` there is none."""

    index: int
    answer: Annotated[str | None, Field(description="A stretch of the context; null where it holds no answer.")] = None
    score: float | None = None
    start: int | None = None
    end: int | None = None
    truncated: int = 0
    error: ErrorObject | None = None


class QuestionReply(Reply):
    object: Literal["list"]
    data: list[AnswerResult]
    model: str
    usage: UsageReply


class Guess(Reply):
    token: str
    id: int
    probability: float


class FillMaskResult(Reply):
    index: int
    masks: Annotated[list[list[Guess]], Field(description="For each mask of the text, the likeliest first.")]


class FillMaskReply(Reply):
    object: Literal["list"]
    data: list[FillMaskResult]
    model: str
    usage: UsageReply


class TokenizeResult(Reply):
    index: int
    ids: list[int]
    tokens: list[str]
    offsets: Annotated[list[tuple[int, int]], Field(description="First character, and one past the last.")]


class TokenizeReply(Reply):
    object: Literal["list"]
    data: list[TokenizeResult]
    model: str
    usage: UsageReply


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    abilities: list[str]


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]


class ModelInfo(Reply):
    """One served model, in full."""

    name: str
    abilities: Annotated[list[str], Field(description="embed, classify, regression, tag, qa, rerank, fill_mask.")]
    kind: Annotated[str | None, Field(description="The task's: label, pair, regression, tag, span, multi.")]
    pair: Annotated[bool, Field(description="Whether it reads two texts.")]
    labels: list[str]
    problems: list[str]
    mask: Annotated[str | None, Field(description="The mask token, where the model guesses.")]
    width: Annotated[int, Field(description="Dimensions of its vectors.")]
    max_len: Annotated[int, Field(description="Tokens of an input.")]
    parameters: Annotated[int, Field(description="Of the encoder.")]
    runtime: str
    precision: str
    batch_tokens: int
    queue_tokens: int
    queued_tokens: int
    fingerprint: str
    loaded: Annotated[float, Field(description="When, in seconds since 1970.")]


class ServerLimits(Reply):
    max_body_bytes: int
    max_texts: int
    max_guesses: Annotated[int, Field(description="Of a request: masks times top_k.")]
    max_header_bytes: int


class Info(Reply):
    """The server and everything that it serves."""

    name: Literal["terrazzo"]
    version: str
    versions: dict[str, str]
    started: float
    ready: bool
    limits: ServerLimits
    models: list[ModelInfo]


class Health(Reply):
    status: Literal["live", "ready"]


class ScoreList(RootModel[list[LabelScore] | list[list[LabelScore]]]):
    """Of one input its classes, likeliest first; of several inputs a list for each."""
