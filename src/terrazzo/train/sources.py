"""Where a stage's model comes from: new, a folder, the stage before; and transforms in between."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from terrazzo.checkpoint import load_config, load_model
from terrazzo.data import Corpus
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.train.stage import FromFolder, Init, Previous

Transform = Callable[[dict[str, Any], Any], tuple[dict[str, Any], Any]]


def check_source(
    source: Init | FromFolder | Previous, corpus: Corpus, previous: EncoderConfig | None
) -> tuple[EncoderConfig, bool]:
    """The architecture that a source begins from, and whether it stays so: no transform changes it.

    Raises:
        InputError: whatever can be refused about the source without its weights.
    """
    if isinstance(source, Init):
        return source.encoder_config(corpus.vocab_size), True
    if source.transform is not None:
        find_transform(source.transform)
    if isinstance(source, FromFolder):
        config = load_config(source.path)
        check_tokenizer(Path(source.path), corpus)
        return config, source.transform is None
    assert previous is not None
    return previous, source.transform is None


def build_model(
    source: Init | FromFolder | Previous, corpus: Corpus, previous: MaskedLM | None, resumed: Path | None
) -> MaskedLM:
    """The model that a stage begins with; after resuming, the one of the checkpoint at `resumed`.

    Raises:
        InputError: a folder without masked-language-model head, or with another tokenizer than the data's.
    """
    if resumed is not None:
        try:
            return _masked_lm(load_model(resumed), resumed)
        except InputError as error:
            raise InputError(f"{error}; or delete {resumed} to resume from the checkpoint before") from None
    if isinstance(source, Init):
        return MaskedLM(source.encoder_config(corpus.vocab_size))
    if isinstance(source, FromFolder):
        check_tokenizer(Path(source.path), corpus)
        previous = _masked_lm(load_model(source.path), Path(source.path))
    assert previous is not None
    return transformed(previous, source.transform)


def transformed(model: MaskedLM, name: str | None) -> MaskedLM:
    """The model after `module:function` of (state dict, config), or itself without one.

    Raises:
        InputError: there is no such function.
    """
    if name is None:
        return model
    state, config = find_transform(name)(model.state_dict(), model.config)
    result = MaskedLM(config, model.encoder.backend)
    result.load_state_dict(state)
    return result


def find_transform(name: str) -> Transform:
    """The function called `module:function`.

    Raises:
        InputError: there is none.
    """
    module_name, _, function_name = name.partition(":")
    try:
        transform: Transform = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"transform {name!r}: write it as module:function ({error})") from None
    return transform


def check_tokenizer(folder: Path, corpus: Corpus) -> None:
    """Refuse data that another tokenizer prepared than the model's.

    Raises:
        InputError: the vocabularies differ.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(
            f"{folder}: no tokenizer.json, so the data in {corpus.path} cannot be checked against the model"
        )
    if Tokenizer.from_file(str(file)).get_vocab() != corpus.tokenizer.get_vocab():
        raise InputError(
            f"{corpus.path} was prepared with another tokenizer than the model in {folder}: "
            f"prepare it again with --tokenizer {file}"
        )


def _masked_lm(model: Any, folder: Path) -> MaskedLM:
    if not isinstance(model, MaskedLM):
        raise InputError(
            f"{folder}: the model has no masked-language-model head to train on; take its MaskedLM checkpoint"
        )
    return model
