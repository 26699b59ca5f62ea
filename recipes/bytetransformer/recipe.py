"""ByteTransformer: what leaving out the padding saves at inference as the mix of lengths changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from recipes.bytetransformer.graph import openvino_arms
from recipes.bytetransformer.mixes import Mix, draw_mix
from recipes.bytetransformer.speed import Arm, attention_arms, on, take_turns, torch_arms
from recipes.bytetransformer.table import Cell, Clock, pairs, table
from recipes.claims import Tier
from recipes.runner import Context
from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.flops import forward_flops
from terrazzo.provenance import write_text_atomic

RESULTS = Path(__file__).with_name("results")
#: Average over longest length; 0.6 is the authors' benchmark.
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


@config
class Settings:
    """A tier.

    Args:
        longest: the padded lengths.
        rounds: batches that are timed for each seed, padded length and share.
        cuda: on the GPU in bfloat16; False is one CPU core in float32.
    """

    longest: tuple[int, ...] = (128, 256, 512)
    documents: int = 16
    width: int = 384
    depth: int = 2
    num_heads: int = 6
    mlp_width: int = 1536
    vocab_size: int = 8192
    rounds: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    cuda: bool = False

    @property
    def clock(self) -> Clock:
        """What ratios are taken of: a GPU's work shows on the wall clock alone."""
        return "wall" if self.cuda else "cpu"


TIERS = {
    "smoke": Settings(
        longest=(16, 32), documents=4, width=32, num_heads=2, mlp_width=64, vocab_size=64, rounds=1, seeds=(0,)
    ),
    "small": Settings(),
    "paper": Settings(
        longest=(128, 256, 512, 1024),
        width=768,
        depth=12,
        num_heads=12,
        mlp_width=3072,
        vocab_size=30528,
        rounds=10,
        cuda=True,
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Metrics per seed of the lengths: time ratios at each share, share of the operations, largest difference.

    Raises:
        InputError: the paper tier, and no GPU.
    """
    settings = TIERS[tier]
    if settings.cuda and not torch.cuda.is_available():
        raise InputError("the paper tier measures on a CUDA GPU, and this machine has none; run --tier small")
    context.record("config", settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {seed: _measure(settings, seed, context) for seed in settings.seeds}
    torch.set_num_threads(threads)
    cells = [cell for own, _ in results.values() for cell in own]
    page = table(cells, settings.clock)
    context.log("\n" + page)
    context.record("cells", [_record(cell) for cell in cells])
    if tier != "smoke":
        write_text_atomic(RESULTS / f"{tier}.md", page)
    return {seed: metrics for seed, (_, metrics) in results.items()}


def _measure(settings: Settings, seed: int, context: Context) -> tuple[list[Cell], dict[str, float]]:
    torch.manual_seed(seed)
    device = torch.device("cuda" if settings.cuda else "cpu")
    dtype = torch.bfloat16 if settings.cuda else torch.float32
    encoder = Encoder(architecture(settings)).eval().to(device, dtype)
    arms = torch_arms(encoder, context.work) | ({} if settings.cuda else openvino_arms(encoder))
    cells, differences, attention = [], [], Cell(max(settings.longest), 0.6)
    for longest in settings.longest:
        for share in SHARES:
            mixes = _mixes(settings, seed, longest, share, device)
            cell, difference = _cell(arms, mixes, share, encoder.config)
            cells.append(cell)
            differences.append(difference)
            if (longest, share) == (attention.longest, attention.share):
                _attention(attention, encoder.config, mixes, dtype)
        context.log(f"seed {seed}: longest {longest} done")
    metrics = _metrics(cells, settings.clock) | {"largest_difference": float(np.max(differences))}
    metrics["plain_over_packed_attention_60_longest"] = median(attention.ratios("plain", "packed", settings.clock))
    return cells, metrics


def architecture(settings: Settings) -> EncoderConfig:
    """BERT of the tier's size, without dropout."""
    return EncoderConfig(
        vocab_size=settings.vocab_size,
        width=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        mlp_width=settings.mlp_width,
        max_len=max(settings.longest),
        positions="learned",
        gated=False,
        mlp_in_bias=True,
        low_precision_norm=False,
        dropout=0.0,
    )


def _mixes(settings: Settings, seed: int, longest: int, share: float, device: torch.device) -> list[Mix]:
    """The timed batches, and one before them to warm up on."""
    random = np.random.default_rng((seed, longest, round(100 * share)))
    return [
        draw_mix(random, settings.documents, longest, share, settings.vocab_size, device)
        for _ in range(settings.rounds + 1)
    ]


def _cell(arms: Mapping[str, Arm], mixes: Sequence[Mix], share: float, config: EncoderConfig) -> tuple[Cell, float]:
    """Times on all batches but the first, and the largest difference of a hidden state from the packed ones."""
    cell, differences = Cell(mixes[0].size, share, {name: [] for name in arms}), []
    for turn, mix in enumerate(mixes):
        done = take_turns(on(arms, mix), turn)
        ours = mix.real(done["packed"][1]).float()
        differences += [float((mix.real(out).float() - ours).abs().max()) for _, out in done.values()]
        if not turn:
            continue
        for name, (spent, _) in done.items():
            cell.spent[name].append(spent)
        cell.tokens.append(mix.packed.num_tokens)
        full = forward_flops(config, [mix.size] * len(mix.packed.lengths))
        cell.flop_shares.append(forward_flops(config, mix.packed.lengths) / full)
    return cell, float(np.max(differences))


def _attention(cell: Cell, config: EncoderConfig, mixes: Sequence[Mix], dtype: torch.dtype) -> None:
    for turn, mix in enumerate(mixes):
        for name, (spent, _) in take_turns(attention_arms(config, mix, dtype), turn).items():
            if turn:
                cell.spent.setdefault(name, []).append(spent)


def _metrics(cells: Sequence[Cell], clock: Clock) -> dict[str, float]:
    """Medians over batches, then means over padded lengths; those of the longest also alone."""
    longest = max(cell.longest for cell in cells)
    metrics: dict[str, float] = {}
    for above, below in pairs(cells[0]):
        for share in SHARES:
            own = {cell.longest: median(cell.ratios(above, below, clock)) for cell in cells if cell.share == share}
            name = f"{above}_over_packed_{100 * share:.0f}"
            metrics |= {name: fmean(own.values()), f"{name}_longest": own[longest]}
            walls = [median(cell.ratios(above, below, "wall")) for cell in cells if cell.share == share]
            metrics[f"{name}_wall"] = fmean(walls)
    metrics["packed_share"] = fmean(median(cell.ratios("packed", "padded", clock)) for cell in cells)
    metrics["flop_share"] = fmean(fmean(cell.flop_shares) for cell in cells)
    return metrics


def _record(cell: Cell) -> dict[str, object]:
    spent = {name: [[one.cpu, one.wall] for one in own] for name, own in cell.spent.items()}
    return {
        "longest": cell.longest,
        "share": cell.share,
        "tokens": cell.tokens,
        "flop_share": fmean(cell.flop_shares),
        "cpu_and_wall_seconds": spent,
    }
