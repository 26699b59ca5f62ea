"""Levels survive their file bit for bit, and are refused where they do not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from terrazzo.compression import database as database_module
from terrazzo.compression.database import Database
from terrazzo.compression.statistics import collect, output_projections
from terrazzo.compression.ziplm import database
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert
from terrazzo.packed import Packed


@pytest.fixture
def made() -> tuple[Encoder, Database]:
    torch.manual_seed(0)
    encoder = Encoder(bert("tiny", 100, width=16, num_heads=2, mlp_width=24, depth=2))
    batch = Packed(tokens_T=torch.randint(0, 100, (80,)), lengths=(50, 30))
    grams = collect(encoder, [batch], output_projections(encoder.config)).grams
    return encoder, database(encoder, grams, {"heads.0": [1, 0], "units.1": [24, 7, 0]}, centre=True)


def test_levels_survive_their_file(made: tuple[Encoder, Database], tmp_path: Path) -> None:
    encoder, levels = made
    opened = Database.load(levels.save(tmp_path / "new" / "levels.safetensors"), encoder)
    assert opened.config == encoder.config and opened.made == levels.made and opened.fingerprint == levels.fingerprint
    assert opened.made == {"method": "ziplm", "damping": 0.01, "centre": True, "tokens": 80}
    assert list(opened.levels) == list(levels.levels) and opened.sizes("units.1") == [24, 7, 0]
    for name, some in levels.levels.items():
        for level, other in zip(some, opened.levels[name], strict=True):
            assert (level.kept, level.error, level.relative_error) == (other.kept, other.error, other.relative_error)
            assert torch.equal(level.weight_DK, other.weight_DK)
            assert level.bias_D is not None and other.bias_D is not None and torch.equal(level.bias_D, other.bias_D)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["levels.safetensors"]


def test_an_interrupted_save_leaves_the_older_file(
    made: tuple[Encoder, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, levels = made
    file = levels.save(tmp_path / "levels.safetensors")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        levels.save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["levels.safetensors"]
    assert Database.load(file, encoder).sizes("heads.0") == [2, 1, 0]


def test_files_that_do_not_belong_are_refused(made: tuple[Encoder, Database], tmp_path: Path) -> None:
    encoder, levels = made
    file = levels.save(tmp_path / "levels.safetensors")
    with torch.no_grad():
        encoder.embeddings.tokens.weight[3, 3] += 1
    with pytest.raises(InputError, match="made of another encoder"):
        Database.load(file, encoder)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        Database.load(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="truncated or damaged"):
        Database.load(file)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="not a file of levels"):
        Database.load(file)
    with pytest.raises(InputError, match="no such file"):
        Database.load(tmp_path / "none.safetensors")
