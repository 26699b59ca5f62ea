"""Encoders cut down by a plan: physically smaller ones, and, to check those, full ones with zeros.

A plan says how many structures each site keeps: `{"heads.0": 3, "units.0": 512}`. Sites that it leaves out stay.

Shapes: S stacked projections, N structures of a site, W columns of one, D width of the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from terrazzo.checkpoint import empty_model
from terrazzo.compression.database import Database, Level
from terrazzo.compression.sites import Site, columns_of, find_site
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig

Plan = Mapping[str, int]


def stitch(encoder: Encoder, database: Database, plan: Plan) -> Encoder:
    """A new, smaller encoder: the levels of the plan put together, without the rows before them that nothing reads.

    It shares no memory with `encoder`, keeps its precision, device and mode, and can be cut again: heads keep the
    numbers that they had in the first encoder.

    Raises:
        InputError: an unknown site, a size that the database does not have, or a database of another encoder.
    """
    database.check(encoder)
    return stitch_unchecked(encoder, database, plan)


def stitch_unchecked(encoder: Encoder, database: Database, plan: Plan) -> Encoder:
    """`stitch` for many plans of one encoder, whose numbers are not compared with the database's each time."""
    levels = _levels(encoder, database, plan)
    state = encoder.state_dict()
    for site, level in levels.items():
        state.update(_cut(encoder, site, level))
    small = empty_model(_config(encoder.config, levels), with_head=False, backend=encoder.backend)
    assert isinstance(small, Encoder)
    small.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
    return small.train(encoder.training)


def masked(encoder: Encoder, database: Database, plan: Plan) -> Encoder:
    """A copy of the encoder that computes what `stitch` gives, at full size: removed columns are zero.

    Raises:
        InputError: as `stitch`.
    """
    database.check(encoder)
    whole = copy.deepcopy(encoder)
    with torch.no_grad():
        for site, level in _levels(encoder, database, plan).items():
            projection = site.projection(whole)
            columns = columns_of(level.kept, site.group(encoder.config))
            projection.weight.zero_()
            projection.weight[:, columns] = level.weight_DK.to(projection.weight)
            if level.bias_D is not None:
                projection.bias.copy_(level.bias_D)
    return whole


def planned_config(database: Database, plan: Plan) -> EncoderConfig:
    """The config of the encoder that `stitch` would give.

    Raises:
        InputError: an unknown site, or a size that the database does not have.
    """
    levels = {find_site(name, database.config): database.level(name, size) for name, size in plan.items()}
    return _config(database.config, levels)


def _levels(encoder: Encoder, database: Database, plan: Plan) -> dict[Site, Level]:
    """The levels that change something."""
    if encoder.config != database.config:
        raise InputError("database: made of an encoder of another shape: make it again from this one")
    levels = {find_site(name, encoder.config): database.level(name, size) for name, size in plan.items()}
    return {site: level for site, level in levels.items() if level.size < site.size(encoder.config)}


def _cut(encoder: Encoder, site: Site, level: Level) -> dict[str, Tensor]:
    """The tensors of a site that a level replaces."""
    producer, projection = site.producer(encoder), site.projection(encoder)
    group = site.group(encoder.config)
    rows = columns_of(level.kept, group).to(producer.weight.device)
    stacked_SND = producer.weight.view(producer.stacked, -1, producer.in_features)
    cut = {
        f"{site.before}.weight": stacked_SND[:, rows].flatten(0, 1),
        site.weight: level.weight_DK.to(projection.weight),
    }
    if site.kind == "heads":
        cut |= _cut_gates(encoder, site, level)
    if producer.bias is not None:
        cut[f"{site.before}.bias"] = producer.bias.view(producer.stacked, -1)[:, rows].flatten()
    if level.bias_D is not None:
        cut[site.weight.replace(".weight", ".bias")] = level.bias_D.to(projection.bias)
    return cut


def _cut_gates(encoder: Encoder, site: Site, level: Level) -> dict[str, Tensor]:
    """The gates of the heads that stay; nothing where there are none."""
    heads = len(encoder.config.layer_heads(site.layer))
    kept = torch.as_tensor(level.kept, dtype=torch.int64)
    named = encoder.get_submodule(site.prefix).named_parameters()
    gates = {name: values for name, values in named if name.startswith("gate.")}
    return {
        f"{site.prefix}.{name}": values.unflatten(0, (heads, -1))[kept.to(values.device)].flatten(0, 1)
        for name, values in gates.items()
    }


def _config(config: EncoderConfig, levels: Mapping[Site, Level]) -> EncoderConfig:
    """The config with fewer heads and units; fields that would say "all" stay None, so that formats stay published."""
    heads = [config.layer_heads(layer) for layer in range(config.depth)]
    widths = [config.layer_mlp_width(layer) for layer in range(config.depth)]
    for site, level in levels.items():
        if site.kind == "heads":
            heads[site.layer] = tuple(heads[site.layer][index] for index in level.kept)
        else:
            widths[site.layer] = level.size
    return config.replace(
        kept_heads=None if all(len(some) == config.num_heads for some in heads) else tuple(heads),
        mlp_widths=None if set(widths) == {config.mlp_width} else tuple(widths),
    )
