"""Reading a published config.json: defaults, translations, and refusal of what an encoder here cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from terrazzo.errors import InputError

V = TypeVar("V")

#: Published names of activation functions that are the same function as ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
PUBLISHED_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu": "relu"}


class Fields:
    """The fields of a config.json; `source` names the file in errors."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: Any) -> Any:
        """The value of a field, or the publisher's default where the file leaves it out."""
        value = self.values.get(name)
        return default if value is None else value

    def translate(self, name: str, table: Mapping[str, V], default: str) -> V:
        """Our word for a field's value.

        Raises:
            InputError: a value that the table does not know.
        """
        value = self.get(name, default)
        if value not in table:
            raise self.error(name, value, f"known: {', '.join(sorted(table))}")
        return table[value]

    def refuse_unless(self, name: str, *accepted: Any) -> None:
        """Raise InputError where a field is present, not null, and none of the accepted values."""
        value = self.values.get(name)
        if value is not None and value not in accepted:
            known = " or ".join(map(repr, accepted)) or "a file without it"
            raise self.error(name, value, f"only {known} can be represented")

    def error(self, name: str, value: Any, mend: str) -> InputError:
        """The error that names file, field, value and mend."""
        return InputError(f"{self.source}: field {name!r} is {value!r}: {mend}; choose another checkpoint")


def refuse_other_machines(fields: Fields) -> None:
    """Refuse decoders, relative positions, factorised embeddings, pruned heads and quantised weights.

    Raises:
        InputError: the field and its value.
    """
    fields.refuse_unless("is_decoder", False)
    fields.refuse_unless("is_encoder_decoder", False)
    fields.refuse_unless("add_cross_attention", False)
    fields.refuse_unless("position_embedding_type", "absolute")
    fields.refuse_unless("embedding_size", fields.values.get("hidden_size"))
    fields.refuse_unless("pruned_heads", {}, [])
    fields.refuse_unless("quantization_config")
