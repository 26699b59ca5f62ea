"""Configs: unknown keys are errors with a mend, overrides and round trips work."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from terrazzo.config import config, from_dict, override, read_file, to_dict
from terrazzo.errors import InputError


@config
class Apple:
    kind: Literal["apple"] = "apple"
    colour: str = "red"


@config
class Pear:
    kind: Literal["pear"] = "pear"
    weight: float = 1.0


@config
class Basket:
    fruit: Annotated[Apple | Pear, Field(discriminator="kind")] = field(default_factory=Apple)
    count: int = 1


def test_round_trip() -> None:
    basket = Basket(fruit=Pear(weight=2.5), count=3)
    assert from_dict(Basket, to_dict(basket)) == basket


def test_misspelt_keys_name_the_nearest() -> None:
    with pytest.raises(InputError, match="basket.toml: unknown key 'cuont': did you mean 'count'"):
        from_dict(Basket, {"cuont": 2}, "basket.toml")
    with pytest.raises(InputError, match="did you mean 'weight'"):
        from_dict(Basket, {"fruit": {"kind": "pear", "wieght": 2}})


def test_wrong_values_name_their_field() -> None:
    with pytest.raises(InputError, match="count: .*integer.*'many'"):
        from_dict(Basket, {"count": "many"})


def test_override_reads_toml_values() -> None:
    values = override({"fruit": {"kind": "pear"}}, ["fruit.weight=3e-4", "count=7", "fruit.name=big one"])
    assert values == {"fruit": {"kind": "pear", "weight": 3e-4, "name": "big one"}, "count": 7}
    with pytest.raises(InputError, match="key=value"):
        override({}, ["count"])
    with pytest.raises(InputError, match="'count' holds 1"):
        override({"count": 1}, ["count.x=2"])


def test_files_that_do_not_parse_are_named(tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("a = \n")
    with pytest.raises(InputError, match=r"run.toml: does not parse: .*line 1"):
        read_file(file)
    with pytest.raises(InputError, match="no such config file"):
        read_file(tmp_path / "none.toml")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="list.json: holds a list, a config is one JSON object"):
        read_file(tmp_path / "list.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="deep.json: does not parse"):
        read_file(tmp_path / "deep.json")
    file.write_bytes(b"\xef\xbb\xbfday = 2020-01-01\n")
    assert override(read_file(file), ["count=1"]).keys() == {"day", "count"}


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_numbers_that_are_not_finite_are_refused(number) -> None:
    with pytest.raises(InputError, match="weight: .*finite number"):
        from_dict(Basket, {"fruit": {"kind": "pear", "weight": number}})
