"""What a folder format is, and which ones there are.

A format translates a config both ways and says under which names it stores each of our tensors. A new family of
published checkpoints is a file beside `bert.py` and a word in `choice.FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from terrazzo.checkpoint.fields import Fields
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig

#: Fields that published formats have no place for and that change no result in fp32; kept under a key of their own.
OWN_FIELDS = ("low_precision_norm", "pad_vocab_to", "init")
OWN_KEY = "terrazzo"

#: Ids of a tokenizer's special tokens by role (pad, cls, sep, mask, unk), as far as they are known.
SpecialIds = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One folder format.

    Args:
        model_types: values of `model_type` that it reads; it writes the first.
        encoder_class, masked_lm_class: what `architectures` says without and with a masked-language-model head.
        read: fields of an `EncoderConfig` from a config.json.
        write: a config.json from an `EncoderConfig`; None where the format is only read.
        names: our module or tensor, `#` for the block number, to the published ones whose rows it stacks; None means
            that the names are ours.
        prefix: what a file with a head puts before the names of the encoder.
        tied: published names that repeat another tensor.
        ignored: pattern of published tensors without a counterpart: poolers, task heads, position counters.
        classifier_head: pattern of further ones that are the task's where the file has a `classifier`.
    """

    model_types: tuple[str, ...]
    encoder_class: str
    masked_lm_class: str
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[EncoderConfig, SpecialIds], dict[str, Any]] | None
    names: Mapping[str, tuple[str, ...]] | None
    prefix: str = ""
    tied: Mapping[str, str] = field(default_factory=dict)
    ignored: str = "$^"
    classifier_head: str = "$^"

    @property
    def published(self) -> bool:
        """Whether the names and shapes are somebody else's."""
        return self.names is not None

    def parts(self, name: str) -> tuple[str, ...]:
        """Published names, without prefix, of the tensors whose rows stacked are our tensor `name`."""
        if self.names is None:
            return (name,)
        block = re.search(r"(?<=^encoder\.blocks\.)\d+", name)
        general = name if block is None else f"{name[: block.start()]}#{name[block.end() :]}"
        if general in self.names:
            return self.names[general]
        module, _, last = general.rpartition(".")
        number = "" if block is None else block.group()
        return tuple(f"{part.replace('#', number)}.{last}" for part in self.names[module])

    def config(self, values: Mapping[str, Any], source: str) -> EncoderConfig:
        """The architecture that a config.json describes.

        Raises:
            InputError: a field whose value cannot be represented.
        """
        fields = Fields(values, source)
        try:
            read = self.read(fields) | dict(fields.get(OWN_KEY, {}))
        except (TypeError, AttributeError) as error:
            raise InputError(f"{source}: a field holds a value of the wrong type ({error}); copy it again") from error
        return from_dict(EncoderConfig, read, source)

    def config_json(self, config: EncoderConfig, special: SpecialIds) -> dict[str, Any] | None:
        """The config.json that describes `config`, or None where this format cannot."""
        if self.write is None:
            return None
        values = {"model_type": self.model_types[0], **self.write(config, special)}
        back = self.config(values, "config.json")
        own = {name: getattr(config, name) for name in OWN_FIELDS if getattr(config, name) != getattr(back, name)}
        if back.replace(**own) != config:
            return None
        return values | ({OWN_KEY: own} if own else {})


def _read_native(fields: Fields) -> dict[str, Any]:
    if "encoder" not in fields:
        raise InputError(f"{fields.source}: field 'encoder' is missing: the folder was written by something else")
    return dict(fields.values["encoder"])


def _write_native(config: EncoderConfig, special: SpecialIds) -> dict[str, Any]:
    return {"encoder": to_dict(config), "pad_token_id": special.get("pad")}


NATIVE = Format(
    model_types=("terrazzo",),
    encoder_class="TerrazzoModel",
    masked_lm_class="TerrazzoForMaskedLM",
    read=_read_native,
    write=_write_native,
    names=None,
)
