"""What each endpoint takes; an unknown field is an error, a number in quotes is no number."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from terrazzo.tasks.forward import Pooling

Item = TypeVar("Item")


class Body(BaseModel):
    """A request's JSON object."""

    model_config = ConfigDict(extra="forbid", strict=True)


#: A text with something in it to read.
Said = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
#: Of a list with millions of wrong items one is told.
Some = Annotated[list[Item], Field(min_length=1, fail_fast=True)]
TokenIds = Some[TokenId]
Texts = Some[str]
ModelName = Annotated[str | None, Field(description="May be left out where one model alone has the ability.")]
Truncate = Annotated[
    bool, Field(description="Cut what is longer than the model reads, and count it in the usage; false refuses it.")
]
Offsets = Annotated[
    Literal["codepoints", "utf16"],
    Field(
        description="What `start` and `end` count: Unicode code points as Python does, or UTF-16 units as JavaScript, "
        "Java and C# do."
    ),
]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is blank")
    return text


class Embeddings(Body):
    """Texts to turn into vectors."""

    input: Annotated[
        str | Texts | TokenIds | Some[TokenIds],
        Field(
            union_mode="left_to_right",
            description="A text, a list of texts, or token ids of this model as /v1/tokenize gives them (with special "
            "ones around them or without), or a list of such lists.",
            examples=["The food was delicious.", ["one text", "another"]],
        ),
    ]
    model: ModelName = None
    dimensions: Annotated[
        int | None,
        Field(ge=1, description="Keep the first so many dimensions, scaled back to length 1; all if left out."),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Field(description="base64 holds little-endian float32.")
    ] = None
    pooling: Annotated[Pooling, Field(description="How the tokens' vectors become one.")] = "mean"
    input_type: Annotated[str | None, Field(description="Accepted; these models read all texts alike.")] = None
    user: Annotated[str | None, Field(description="Accepted and not looked at.")] = None
    truncate: Truncate = True


def _exact(value: Any) -> Any:
    """Refuse numbers that JSON of 64 bits cannot give back as they came."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, (dict, list)):
            rest += one.values() if isinstance(one, dict) else one
        elif isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{one} cannot be given back: leave the field out, or write it as a string")
        elif isinstance(one, int) and not -(2**63) <= one < 2**64:
            raise ValueError("a whole number beyond 64 bits cannot be given back: write it as a string")
    return value


class Document(BaseModel):
    """A document with further fields, which are given back as they are."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_exact)]]

    text: str


class Rerank(Body):
    """Documents to put in the order in which they answer a query."""

    query: Annotated[Said, AfterValidator(_not_blank), Field(examples=["How long do I boil an egg?"])]
    documents: Annotated[
        Some[str | Document],
        Field(examples=[["A soft-boiled egg takes five minutes.", {"text": "Hens lay eggs."}]]),
    ]
    model: ModelName = None
    top_n: Annotated[int | None, Field(ge=1, description="Give the best so many; all if left out.")] = None
    return_documents: Annotated[bool | None, Field(description="Give the documents back with their scores.")] = False
    truncate: Truncate = True


class TextRow(Body):
    """One text; of several problems, the one it belongs to."""

    text: str
    problem: str | None = None


class PairRow(Body):
    """Two texts; of several problems, the one they belong to."""

    a: str
    b: str
    problem: str | None = None


Pair = tuple[str, str]


class Classify(Body):
    """Texts, or pairs of texts, to classify or to give a value."""

    input: Annotated[
        Said | TextRow | PairRow | Some[str | Pair | TextRow | PairRow],
        Field(
            description="A text, or a list of texts, of pairs of texts, or of objects with `text` or `a` and `b`. A "
            "pair alone is written as a list of one pair.",
            examples=["What a film!", ["What a film!", "I fell asleep."], [["It rains.", "The street is wet."]]],
        ),
    ]
    model: ModelName = None
    problem: Annotated[
        str | None, Field(description="For models of several problems: that of all inputs that name none themselves.")
    ] = None
    top_k: Annotated[int | None, Field(ge=1, description="Give the likeliest so many classes; all if left out.")] = None
    raw_scores: Annotated[
        bool,
        Field(
            description="Scores before softmax or sigmoid: logarithms of probabilities, of several classes log-odds."
        ),
    ] = False
    truncate: Truncate = True


class Predict(Body):
    """Texts to classify, as text-embeddings-inference takes them."""

    inputs: Annotated[
        Said | Pair | Some[Said | tuple[Said] | tuple[Said, Said]],
        Field(
            union_mode="left_to_right",
            description="A text; two strings, a pair; or a list of [text] and [text, text].",
            examples=["What a film!", [["What a film!"], ["I fell asleep."]]],
        ),
    ]
    model: ModelName = None
    raw_scores: bool = False
    truncate: Truncate = True


class WordsRow(Body):
    """A text that is cut into words already."""

    tokens: Some[Said]


class Tag(Body):
    """Texts whose stretches are to be found and named."""

    input: Annotated[
        Said | WordsRow | Some[str | WordsRow],
        Field(
            description="A text, or words as {tokens: [...]} whose spans count in the words joined by spaces; or a "
            "list of these.",
            examples=["Ada Lovelace left London.", [{"tokens": ["Ada", "left", "London"]}]],
        ),
    ]
    model: ModelName = None
    offsets: Offsets = "codepoints"
    truncate: Truncate = True


class QuestionRow(Body):
    """A question, and the text that may answer it."""

    question: str
    context: str


class Question(Body):
    """A question about a context, or several in `input`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["question", "context"], "not": {"required": ["input"]}},
                {"required": ["input"], "not": {"anyOf": [{"required": ["question"]}, {"required": ["context"]}]}},
            ]
        }
    )

    question: Annotated[Said, Field(examples=["Who crossed?"])] = ""
    context: Annotated[Said, Field(examples=["Ada crossed the street in the rain."])] = ""
    input: Some[QuestionRow] = []  # noqa: RUF012
    model: ModelName = None
    offsets: Offsets = "codepoints"
    truncate: Truncate = True

    @model_validator(mode="after")
    def _one_way(self) -> Question:
        given = self.model_fields_set & {"question", "context", "input"}
        if given not in ({"input"}, {"question", "context"}):
            raise ValueError("give question and context, or a list of such objects as input")
        return self


class FillMask(Body):
    """Texts with mask tokens to guess."""

    input: Annotated[
        str | Texts,
        Field(description="A text with the model's mask token, or a list.", examples=["Paris is in [MASK]."]),
    ]
    model: ModelName = None
    top_k: Annotated[int, Field(ge=1, le=1000, description="Guesses for each mask.")] = 5
    truncate: Truncate = True


class Tokenize(Body):
    """Texts to cut into tokens."""

    input: Annotated[str | Texts, Field(description="A text or a list.", examples=["A bird sings."])]
    model: ModelName = None
    add_special_tokens: Annotated[bool, Field(description="With the special tokens that the model reads.")] = True
    offsets: Offsets = "codepoints"


def as_list(value: Any) -> list[Any]:
    """A list, or a list of the one thing."""
    return value if isinstance(value, list) else [value]
