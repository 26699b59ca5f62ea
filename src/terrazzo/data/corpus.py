"""A prepared data folder, opened: `Corpus`, its two `Split`s, its special tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from terrazzo.data.files import sha256
from terrazzo.data.shards import Shard, shard_files
from terrazzo.errors import InputError

MANIFEST = "data.json"
TOKENIZER = "tokenizer.json"
FORMAT = "terrazzo-data-1"
SPLITS = ("train", "heldout")

_ROLE_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of the five tokens that carry no text, under BERT's or RoBERTa's names."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, source: str = "tokenizer") -> SpecialTokens:
        """Look the five up in a tokenizer.

        Raises:
            InputError: a token is missing under both names; `source` names the file.
        """
        found: dict[str, int] = {}
        for role, names in _ROLE_NAMES.items():
            ids = [i for name in names if (i := tokenizer.token_to_id(name)) is not None]
            if not ids:
                raise InputError(
                    f"{source}: the tokenizer has no {' or '.join(names)} token; masked-language-model training needs "
                    "one: choose a tokenizer of the BERT or RoBERTa family, or leave --tokenizer out to train one"
                )
            found[role] = ids[0]
        return cls(**found)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are never masked or predicted, ascending; tags such as `<usr>` are ordinary tokens."""
        return tuple(sorted(set(dataclasses.astuple(self))))


class Split:
    """The documents of one side of the corpus, over all its shards."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = tuple(shards)
        self._first = list(itertools.accumulate((shard.num_documents for shard in shards), initial=0))

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 tokens of each document, without special tokens."""
        parts = [np.diff(shard.offsets).astype(np.int32) for shard in self._shards]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    @property
    def num_documents(self) -> int:
        return self._first[-1]

    @property
    def num_tokens(self) -> int:
        return sum(len(shard.tokens_T) for shard in self._shards)

    def document(self, index: int) -> np.ndarray:
        """Read-only view (uint16 or uint32) of the token ids of document `index`, without special tokens."""
        shard = bisect_right(self._first, index) - 1
        if not 0 <= shard < len(self._shards):
            raise IndexError(f"document {index} of {self.num_documents}")
        return self._shards[shard].document(index - self._first[shard])

    def slices(self, documents_B: np.ndarray, starts_B: np.ndarray, stops_B: np.ndarray) -> list[np.ndarray]:
        """Read-only views of the tokens `start` to `stop` of each document: `document`, many at a time."""
        shard_B = np.searchsorted(self._first, documents_B, side="right") - 1
        local_B = documents_B - np.asarray(self._first)[shard_B]
        tokens = [shard.tokens_T for shard in self._shards]
        offset = [shard.offsets.item for shard in self._shards]
        where = zip(*(x.tolist() for x in (shard_B, local_B, starts_B, stops_B)), strict=True)
        return [tokens[s][(first := offset[s](i)) + start : first + stop] for s, i, start, stop in where]


def open_split(folder: Path, shards: Sequence[Mapping[str, Any]]) -> Split:
    """The split that the manifest lists as `shards`."""
    return Split([Shard(folder, shard["name"]) for shard in shards])


class Corpus:
    """A data folder that `prepare` has finished.

    Args:
        path: the folder.
        manifest: the content of its data.json.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest = path, dict(manifest)
        self.special = SpecialTokens(**manifest["special"])
        self.vocab_size = int(manifest["vocab_size"])
        self.fingerprint = str(manifest["fingerprint"])
        self.train, self.heldout = (open_split(path, manifest["shards"][split]) for split in SPLITS)

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Corpus:
        """Open a data folder; sizes are always checked, checksums with `verify` (it reads every byte).

        Raises:
            InputError: no such folder, an unfinished or foreign one, or a damaged file, which is named.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            for name, recorded in manifest["files"].items():
                _check_file(path / name, recorded, verify)
            return cls(path, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path / MANIFEST}: damaged ({what}); prepare the folder again") from None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.path / TOKENIZER))


def id_space(tokenizer: Tokenizer) -> int:
    """One more than the largest id: the rows that an embedding needs, also where a vocabulary has gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def manifest_of(path: Path, shards: Mapping[str, Sequence[Mapping[str, Any]]], **fields: Any) -> dict[str, Any]:
    """The manifest of the finished files in `path`: checksums, special tokens, fingerprint, and further `fields`."""
    tokenizer = Tokenizer.from_file(str(path / TOKENIZER))
    names = [TOKENIZER, *(file for split in SPLITS for shard in shards[split] for file in shard_files(shard["name"]))]
    files = {name: {"bytes": (path / name).stat().st_size, "sha256": sha256(path / name)} for name in names}
    return {
        "format": FORMAT,
        "fingerprint": fingerprint(files),
        "vocab_size": id_space(tokenizer),
        "special": dataclasses.asdict(SpecialTokens.of(tokenizer, TOKENIZER)),
        "shards": {split: [dict(shard) for shard in shards[split]] for split in SPLITS},
        "files": files,
        **fields,
    }


def fingerprint(files: Mapping[str, Mapping[str, Any]]) -> str:
    """32 hex digits that name the content of a data folder: the tokenizer and every shard, in order."""
    text = "\n".join(f"{name} {recorded['sha256']}" for name, recorded in files.items())
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise InputError(f"{path}: no such data folder; make one with `terrazzo prepare SOURCE --out {path}`")
    file = path / MANIFEST
    if not file.is_file():
        unfinished = (path / ".work").is_dir()
        mend = (
            "`terrazzo prepare` did not finish: run the same command again, it continues where it stopped"
            if unfinished
            else f"make a data folder with `terrazzo prepare SOURCE --out {path}`"
        )
        raise InputError(f"{path}: no {MANIFEST}; {mend}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: does not parse ({error}); prepare the folder again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{file}: not a data folder of format {FORMAT}; prepare the folder again")
    return manifest


def _check_file(path: Path, recorded: Mapping[str, Any], verify: bool) -> None:
    mend = "restore it from a copy, or delete the folder and run `terrazzo prepare` again"
    if not path.is_file():
        raise InputError(f"{path}: missing; {mend}")
    if path.stat().st_size != recorded["bytes"]:
        raise InputError(f"{path}: damaged: {path.stat().st_size} bytes instead of {recorded['bytes']}; {mend}")
    if verify and sha256(path) != recorded["sha256"]:
        raise InputError(f"{path}: damaged: its content does not match the checksum in {MANIFEST}; {mend}")
