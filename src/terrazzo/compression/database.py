"""What every site of an encoder could be cut down to: columns that stay, what they become, and how wrong that is.

Shapes: D rows of an output projection, F its columns, K columns that stay.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from terrazzo.compression.sites import Site, columns_of, find_site
from terrazzo.compression.statistics import Moments
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig

FORMAT = "terrazzo-levels-1"


@dataclass(frozen=True, kw_only=True)
class Level:
    """One size of a site.

    Args:
        kept: the structures that stay, counted from 0 among those that the encoder has, ascending.
        weight_DK: the output projection afterwards, of the columns that stay.
        bias_D: its bias afterwards; None where it is as it was.
        error: ||W' X - W X|| over all calibration tokens, Frobenius.
        relative_error: the same over ||W X||, what the projection gave (without its bias) before.
    """

    kept: tuple[int, ...]
    weight_DK: Tensor
    bias_D: Tensor | None = None
    error: float
    relative_error: float

    @property
    def size(self) -> int:
        """Structures that stay."""
        return len(self.kept)


class Database:
    """The levels of each site by its name, largest first, of one encoder.

    Args:
        config: the encoder's; fingerprint: of its config and all its numbers.
        made: how it was made, for the record: method, damping, tokens.
    """

    def __init__(
        self, config: EncoderConfig, fingerprint: str, levels: Mapping[str, Iterable[Level]], made: Mapping[str, Any]
    ) -> None:
        self.config, self.fingerprint, self.made = config, fingerprint, dict(made)
        self.levels = {name: sorted(some, key=lambda level: -level.size) for name, some in levels.items()}

    def sizes(self, site: str) -> list[int]:
        """The sizes that a site can have, largest first.

        Raises:
            InputError: no such site, or one without levels.
        """
        return [level.size for level in self._of(site)]

    def level(self, site: str, size: int) -> Level:
        """The level of a site that keeps `size` structures.

        Raises:
            InputError: there is none; the message names the nearest sizes.
        """
        levels = self._of(site)
        for level in levels:
            if level.size == size:
                return level
        near = sorted(sorted({level.size for level in levels}, key=lambda other: abs(other - size))[:2])
        raise InputError(f"plan: {site} of size {size}: no such level; the nearest are {' and '.join(map(str, near))}")

    def check(self, encoder: Encoder) -> None:
        """Raise InputError unless this was made of `encoder`."""
        if encoder.config != self.config or encoder_fingerprint(encoder) != self.fingerprint:
            raise InputError("database: made of another encoder (its shape or its numbers differ): make it again")

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file whose header holds the rest as JSON: under a temporary name, flushed, renamed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        tensors, record = self._stored()
        try:
            save_file(tensors, temporary, metadata={"terrazzo": json.dumps(record, allow_nan=False)})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path, encoder: Encoder | None = None) -> Database:
        """Open a saved database; its tensors stay mapped. With `encoder`, only if it was made of that one.

        Raises:
            InputError: no such file, not a database, damaged, or made of another encoder.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file of levels")
        try:
            with safe_open(path, framework="pt") as stored:
                record = json.loads((stored.metadata() or {}).get("terrazzo", "{}"))
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{path}: truncated or damaged ({error}): make it again") from None
        if record.get("format") != FORMAT:
            raise InputError(f"{path}: not a file of levels ({FORMAT}): {record.get('format')!r}")
        levels = {
            name: [_level(tensors, f"{name}.{number}", errors) for number, errors in enumerate(some)]
            for name, some in record["levels"].items()
        }
        config = from_dict(EncoderConfig, record["config"], str(path))
        database = cls(config, record["fingerprint"], levels, record["made"])
        if encoder is not None:
            database.check(encoder)
        return database

    def _of(self, site: str) -> list[Level]:
        find_site(site, self.config)
        if site not in self.levels:
            raise InputError(f"site {site!r} has no levels here: leave it out of the plan")
        return self.levels[site]

    def _stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for site, levels in self.levels.items():
            for number, level in enumerate(levels):
                tensors[f"{site}.{number}.kept"] = torch.tensor(level.kept, dtype=torch.int32)
                tensors[f"{site}.{number}.weight"] = level.weight_DK.detach().cpu().clone()
                if level.bias_D is not None:
                    tensors[f"{site}.{number}.bias"] = level.bias_D.detach().cpu().clone()
        errors = {
            site: [[level.error, level.relative_error] for level in levels] for site, levels in self.levels.items()
        }
        record = {"format": FORMAT, "fingerprint": self.fingerprint, "config": to_dict(self.config), "made": self.made}
        return tensors, record | {"levels": errors}


def _level(tensors: Mapping[str, Tensor], prefix: str, errors: tuple[float, float]) -> Level:
    return Level(
        kept=tuple(tensors[f"{prefix}.kept"].tolist()),
        weight_DK=tensors[f"{prefix}.weight"],
        bias_D=tensors.get(f"{prefix}.bias"),
        error=errors[0],
        relative_error=errors[1],
    )


class Before:
    """What a site's output projection gave before it was cut: the measure of its levels.

    Args:
        centre: judge, and correct, by inputs around their mean; a level's bias then takes over what the removed columns
            gave on average.

    Raises:
        InputError: moments of other inputs, or `centre` for a projection without bias.
    """

    def __init__(
        self,
        encoder: Encoder,
        site: Site,
        grams: Mapping[str, Moments],
        centre: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        projection, moments = site.projection(encoder), grams.get(site.weight)
        if moments is None or len(moments.sum_F) != projection.in_features or not moments.tokens:
            raise InputError(f"statistics of {site.weight}: missing, or of another encoder: collect them from this one")
        if centre and projection.bias is None:
            raise InputError(f"centre: {site.weight.removesuffix('.weight')} has no bias that could take the mean")
        self.group, self.mean_F = site.group(encoder.config), moments.mean_F.to(dtype)
        self.weight_DF = projection.weight.detach().to(dtype)
        self.bias_D = projection.bias.detach().to(dtype) if centre else None
        self.stored = projection.weight.dtype
        self.gram_FF = moments.centred_FF if centre else moments.gram_FF
        self._gram_FF = self.gram_FF.to(dtype)
        self.norm = math.sqrt(squared_error(self.weight_DF, moments.gram_FF.to(dtype)))

    def level(self, kept: Tensor, weight_DK: Tensor) -> Level:
        """The level that keeps these structures with these columns, and its error."""
        change_DF = self.change(kept, weight_DK)
        bias_D = None if self.bias_D is None else self.bias_D - change_DF @ self.mean_F
        error = math.sqrt(squared_error(change_DF, self._gram_FF))
        return Level(
            kept=tuple(kept.tolist()),
            weight_DK=weight_DK.to(self.stored, copy=True),
            bias_D=None if bias_D is None else bias_D.to(self.stored),
            error=error,
            relative_error=error / self.norm if self.norm else 0.0,
        )

    def change(self, kept: Tensor, weight_DK: Tensor) -> Tensor:
        """What these columns in place of all change the matrix by, `(D, F)`."""
        change_DF = -self.weight_DF
        change_DF[:, columns_of(kept, self.group)] += weight_DK
        return change_DF


def squared_error(change_DF: Tensor, gram_FF: Tensor) -> float:
    """||C X||^2 of a change C of weights, from X X'."""
    return max(0.0, float((change_DF @ gram_FF).mul_(change_DF).sum(dtype=torch.float64)))


def check_levels(levels: Mapping[str, Iterable[int]], config: EncoderConfig) -> dict[Site, tuple[int, ...]]:
    """The sizes asked for by site, largest first, each once; the size that a site has is always among them.

    Raises:
        InputError: an unknown site, or a size that it cannot have.
    """
    checked = {}
    for name, sizes in levels.items():
        site = find_site(name, config)
        full = site.size(config)
        wanted = {full, *sizes}
        if not all(0 <= size <= full for size in wanted):
            raise InputError(f"levels of {name}: {sorted(wanted)}: it has {full}: give sizes from 0 to {full}")
        checked[site] = tuple(sorted(wanted, reverse=True))
    return checked


def encoder_fingerprint(encoder: Encoder) -> str:
    """A hash of an encoder's config and of all its numbers."""
    return tensors_fingerprint(encoder.state_dict(), json.dumps(to_dict(encoder.config), sort_keys=True))


def tensors_fingerprint(tensors: Mapping[str, Tensor], beside: str = "") -> str:
    """A hash of all numbers of some tensors, with their names and types, and of what stands beside them."""
    digest = hashlib.sha256(beside.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
