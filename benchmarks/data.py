"""The data path on real text: packing and masking beside transformers' collator, balance, packing, resuming.

English Wikipedia, paragraph by paragraph (short and unequal documents) and article by article (long ones), tokenised
with a WordPiece vocabulary trained on the same text.

    python -m benchmarks.data --data-root DATASETS
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from benchmarks.result import RESULTS, Row, bootstrap_interval, write
from recipes.runner import data_root
from terrazzo.data import Loader, SpecialTokens, Split, Stream, pieces_for_tokens
from terrazzo.data.packing import balance, best_fit, efficiency, imbalance, loads, serpentine
from terrazzo.data.shards import Shard, ShardWriter, token_dtype
from terrazzo.errors import InputError
from terrazzo.objectives import MLM, MLMConfig

Example = dict[str, list[int]]
Collator = Callable[[list[Example]], object]
Clock = Callable[[], float]

VOCAB_SIZE = 8192
BATCH_TOKENS = 65_536
RATE = 0.30
#: (ranks, pieces a rank and step) of the unpadded-BERT comparison
DEALS = ((2, 16), (8, 16), (8, 56), (64, 16))


def load_texts(root: Path | None, megabytes: float) -> list[list[str]]:
    """Articles as lists of paragraphs, from the first part of the corpus."""
    parts = sorted((root / "enwiki").glob("*.jsonl")) if root else []
    if not parts:
        raise InputError(f"{root}/enwiki: no JSON lines of English Wikipedia; give --data-root or set TERRAZZO_DATA")
    articles: list[list[str]] = []
    read = 0
    with open(parts[0], encoding="utf-8") as lines:
        for line in lines:
            articles.append([p for p in json.loads(line)["text"].split("\n") if p.strip()])
            read += len(line)
            if read > megabytes * 1e6:
                break
    return articles


def write_splits(articles: list[list[str]], work: Path) -> tuple[dict[str, Split], Tokenizer]:
    """Tokenise, and write the paragraphs and the articles as memory-mapped shards."""
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator((p for a in articles for p in a), vocab_size=VOCAB_SIZE, show_progress=False)
    tokenizer = Tokenizer.from_str(trained.to_str())
    dtype = token_dtype(VOCAB_SIZE)
    writers = {name: ShardWriter(work, name, dtype) for name in ("paragraphs", "articles")}
    for article in articles:
        ids = [e.ids for e in tokenizer.encode_batch_fast(article, add_special_tokens=False)]
        writers["paragraphs"].add(ids)
        writers["articles"].add([list(itertools.chain.from_iterable(ids))])
    for writer in writers.values():
        writer.close()
    return {name: Split([Shard(work, name)]) for name in writers}, tokenizer


class Ours:
    """Planning, dealing, reading and masking, as training does it."""

    def __init__(self, split: Split, special: SpecialTokens, max_len: int, micro_tokens: int) -> None:
        n = pieces_for_tokens(split, special, max_len, BATCH_TOKENS)
        self.stream = Stream(split, special, max_len=max_len, pieces_per_step=n, seed=0)
        self.micro_tokens = micro_tokens
        self.objective = MLM(MLMConfig(rate=RATE), special, VOCAB_SIZE)

    def run(self, first: int, steps: int) -> int:
        """Tokens of `steps` steps."""
        with self.loader(first) as loader:
            return sum(step.num_tokens for step in itertools.islice(loader, steps))

    def loader(self, first: int) -> Loader:
        return Loader(self.stream, self.objective, micro_tokens=self.micro_tokens, workers=0, start_step=first)

    def examples(self, first: int, steps: int) -> list[list[Example]]:
        """The same pieces as the peer takes them: per micro-batch, a list of examples, all in memory already."""
        found = []
        for t in range(first, first + steps):
            plan = self.stream.step(t)
            size = -(-len(plan.pieces) // len(plan.deal(1, self.micro_tokens)[0]))
            packed = self.stream.pieces.pack(plan.pieces, plan.epochs)
            rows = [{"input_ids": ids.tolist()} for ids in torch.split(packed.tokens_T, list(packed.lengths))]
            found += [rows[i : i + size] for i in range(0, len(rows), size)]
        return found


def seconds_of(function: Callable[..., object], *arguments: object, clock: Clock = time.process_time) -> float:
    start = clock()
    function(*arguments)
    return clock() - start


def collate_all(collate: Collator, batches: list[list[Example]]) -> None:
    for examples in batches:
        collate(examples)


def compare_collation(ours: Ours, peers: dict[str, Collator], rounds: int) -> dict[str, Any]:
    """Tokens a CPU second of both sides in turn, a warm-up round apart; the peer is its faster variant."""
    our_steps, peer_steps = 24, 4
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}
    for round_ in range(rounds + 1):
        first = round_ * our_steps
        tokens = sum(ours.stream.step(t).num_tokens for t in range(first, first + our_steps))
        rates["ours"].append(tokens / seconds_of(ours.run, first, our_steps))
        batches = ours.examples(first, peer_steps)
        tokens = sum(len(row["input_ids"]) for rows in batches for row in rows)
        for name, collate in peers.items():
            rates[name].append(tokens / seconds_of(collate_all, collate, batches))
    rates = {name: values[1:] for name, values in rates.items()}
    best = max(peers, key=lambda name: statistics.median(rates[name]))
    value, low, high = bootstrap_interval(rates["ours"], rates[best])
    lengths = np.array([len(row["input_ids"]) for rows in batches for row in rows])
    padded = sum(len(rows) * max(len(row["input_ids"]) for row in rows) for rows in batches)
    return {
        "max_len": ours.stream.pieces.max_len,
        "micro_tokens": ours.micro_tokens,
        "examples_a_batch": len(batches[0]),
        "mean_length": float(lengths.mean()),
        "peer_valid_share": float(lengths.sum() / padded),
        "tokens_per_cpu_second": rates,
        "medians": {name: statistics.median(values) for name, values in rates.items()},
        "peer": best,
        "ratio": value,
        "interval": [low, high],
    }


def collation_peers(tokenizer: PreTrainedTokenizerFast) -> dict[str, Collator]:
    """transformers' collator with tensors of torch and of numpy."""
    return {
        f"transformers ({kind})": DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE, return_tensors=kind)
        for kind in ("pt", "np")
    }


class Endless(IterableDataset):
    """Examples without end, as a streamed data set gives them."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Example]:
        return itertools.cycle(self.examples)


def compare_resume(ours: Ours, collate: Collator, at: int, rounds: int) -> dict[str, Any]:
    """Wall seconds to the first batch of step `at`: ours measured, the peer's from the time that skipping few takes."""
    examples = [row for rows in ours.examples(0, 1) for row in rows]
    per_step = ours.stream.pieces_per_step
    few, many = 5, 15
    measured: dict[str, list[float]] = {"ours": [], "ours_at_step_0": [], "peer_a_step": [], "peer_extrapolated": []}

    def peer(steps: int) -> object:
        return next(itertools.islice(DataLoader(Endless(examples), per_step, collate_fn=collate), steps, None))

    def resume(step: int) -> object:
        split, special = ours.stream.pieces.split, ours.stream.pieces.special
        fresh = Ours(split, special, ours.stream.pieces.max_len, ours.micro_tokens)
        return next(fresh.loader(step))

    for _ in range(rounds + 1):
        for name, step in (("ours", at), ("ours_at_step_0", 0)):
            measured[name].append(seconds_of(resume, step, clock=time.perf_counter))
        short, long = (seconds_of(peer, steps, clock=time.perf_counter) for steps in (few, many))
        measured["peer_a_step"].append((long - short) / (many - few))
        measured["peer_extrapolated"].append(short + (at - few) * measured["peer_a_step"][-1])
    measured = {name: values[1:] for name, values in measured.items()}
    value, low, high = bootstrap_interval(measured["peer_extrapolated"], measured["ours"])
    indices = 1_000_000
    sampler = BatchSampler(RandomSampler(range(indices)), per_step, drop_last=True)
    a_index = seconds_of(list, sampler, clock=time.perf_counter) / indices
    return {
        "step": at,
        "pieces_a_step": per_step,
        "peer_steps_timed": [few, many],
        "seconds": measured,
        "medians": {name: statistics.median(values) for name, values in measured.items()},
        "ratio": value,
        "interval": [low, high],
        "skipping_indices_only_seconds_extrapolated": a_index * per_step * at,
    }


def measure_balance(split: Split, special: SpecialTokens, max_len: int, steps: int) -> list[dict[str, Any]]:
    """max/mean tokens over ranks, averaged over steps, for three ways of dealing, and of the stream's micro-batches."""
    found = []
    for ranks, each in DEALS:
        stream = Stream(split, special, max_len=max_len, pieces_per_step=ranks * each, seed=0)
        plans = [stream.step(t) for t in range(steps)]
        row: dict[str, Any] = {"max_len": max_len, "ranks": ranks, "pieces_a_rank": each, "steps": steps}
        for name, way in (("in order", in_order), ("serpentine", serpentine), ("longest first", balance)):
            row[name] = statistics.fmean(imbalance(loads(p.lengths, way(p.lengths, ranks), ranks)) for p in plans)
        micro = 4 * max_len
        shares = [p.deal(ranks, micro) for p in plans]
        totals = [
            np.array([[p.lengths[m].sum() for m in s] for s in share]) for p, share in zip(plans, shares, strict=True)
        ]
        row |= {"micro_tokens": micro, "micro_batches": statistics.fmean(t.shape[1] for t in totals)}
        row["dealt, over ranks"] = statistics.fmean(imbalance(t.sum(1)) for t in totals)
        row["dealt, over micro-batches"] = statistics.fmean(imbalance(t.ravel()) for t in totals)
        found.append(row)
    return found


def in_order(lengths: np.ndarray, bins: int) -> np.ndarray:
    """The baseline: as many items to each bin, as they come."""
    return np.arange(len(lengths)) * bins // len(lengths)


def measure_packing(split: Split, special: SpecialTokens, max_len: int) -> list[dict[str, Any]]:
    """Share of fixed-size bins that holds tokens, best-fit decreasing and in order, over 8 buffers of pieces."""
    found = []
    for buffer, capacity in ((256, max_len), (1024, max_len), (4096, max_len), (4096, 8 * max_len)):
        stream = Stream(split, special, max_len=max_len, pieces_per_step=buffer, seed=0)
        plans = [stream.step(t).lengths for t in range(8)]
        seconds = sum(seconds_of(best_fit, lengths, capacity) for lengths in plans)
        found.append(
            {
                "max_len": max_len,
                "pieces": buffer,
                "bin_tokens": capacity,
                "best fit": statistics.fmean(efficiency(n, best_fit(n, capacity), capacity) for n in plans),
                "in order": statistics.fmean(efficiency(n, next_fit(n, capacity), capacity) for n in plans),
                "padded": statistics.fmean(float(n.mean() / max_len) for n in plans),
                "ns_a_token": 1e9 * seconds / sum(int(n.sum()) for n in plans),
            }
        )
    return found


def next_fit(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """The baseline: fill a bin in order until the next item does not fit."""
    bins: list[list[int]] = [[]]
    room = capacity
    for item, length in enumerate(lengths.tolist()):
        if length > room:
            bins.append([])
            room = capacity
        bins[-1].append(item)
        room -= length
    return [np.array(items) for items in bins]


def rows_of(details: dict[str, Any]) -> list[Row]:
    main, resume = details["collation"][0], details["resume"]
    default = main["medians"]["ours"] / main["medians"]["transformers (pt)"]
    worst = max(details["balance"], key=lambda row: row["longest first"])
    packing = next(row for row in details["packing"] if (row["pieces"], row["bin_tokens"]) == (1024, row["max_len"]))
    return [
        Row(
            id="C9",
            metric="packing + masking, tokens/s a core",
            peer=f"MLM collator of {main['peer']}",
            floor=5.0,
            goal=20.0,
            value=main["ratio"],
            low=main["interval"][0],
            high=main["interval"][1],
            note=f"paragraphs of at most {main['max_len']} tokens, {main['examples_a_batch']} a batch, CPU seconds of "
            "one thread; ours plans, reads and masks, the peer pads and masks token lists that are in memory; "
            f"{default:.0f}x with tensors of torch, as Trainer uses the peer",
        ),
        Row(
            id="C9b",
            metric="packing efficiency, best fit",
            peer=f"in order {100 * packing['in order']:.1f} %, padded {100 * packing['padded']:.1f} %",
            floor=99.0,
            goal=99.9,
            value=100 * packing["best fit"],
            unit="%",
            note=f"{packing['pieces']} paragraphs of at most {packing['max_len']} tokens, into bins of as many",
        ),
        Row(
            id="C9c",
            metric="max/mean tokens over ranks, longest first",
            peer=f"in order {worst['in order']:.3f}, serpentine {worst['serpentine']:.3f}",
            floor=1.01,
            goal=1.005,
            value=worst["longest first"],
            better="lower",
            note=f"the worst of {len(details['balance'])} settings: {worst['ranks']} x {worst['pieces_a_rank']} pieces",
        ),
        Row(
            id="C10",
            metric=f"first batch after resuming at step {resume['step']:,}",
            peer="skipping batches of a streamed data set, extrapolated",
            floor=100.0,
            goal=None,
            value=resume["ratio"],
            low=resume["interval"][0],
            high=resume["interval"][1],
            note=f"ours {1000 * resume['medians']['ours']:.1f} ms, at step 0 "
            f"{1000 * resume['medians']['ours_at_step_0']:.1f} ms; the peer's time a step times {resume['step']:,} is "
            f"{resume['medians']['peer_extrapolated']:.0f} s; a map-style data set that skips only indices needs about "
            f"{resume['skipping_indices_only_seconds_extrapolated']:.0f} s",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder that holds enwiki/ (default: TERRAZZO_DATA)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for data.json")
    parser.add_argument("--megabytes", type=float, default=12.0, help="text to read")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        splits, tokenizer = write_splits(load_texts(data_root(options.data_root), options.megabytes), Path(folder))
        special = SpecialTokens.of(tokenizer)
        names = {f"{role}_token": tokenizer.id_to_token(i) for role, i in vars(special).items()}
        peers = collation_peers(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))
        settings = (("paragraphs", 128, 16_384), ("paragraphs", 128, 4096), ("articles", 512, 16_384))
        collation = []
        for name, max_len, micro_tokens in settings:
            ours = Ours(splits[name], special, max_len, micro_tokens)
            collation.append({"documents": name, **compare_collation(ours, peers, options.rounds)})
            print(f"{name} {max_len} {micro_tokens}: {collation[-1]['ratio']:.1f}x", flush=True)
        details = {
            "command": f"python -m benchmarks.data --megabytes {options.megabytes:g} --rounds {options.rounds}",
            "documents": {name: s.num_documents for name, s in splits.items()},
            "tokens": splits["articles"].num_tokens,
            "vocab_size": VOCAB_SIZE,
            "batch_tokens": BATCH_TOKENS,
            "collation": collation,
            "resume": compare_resume(
                Ours(splits["paragraphs"], special, 128, 16_384), peers[collation[0]["peer"]], 100_000, options.rounds
            ),
            "balance": measure_balance(splits["paragraphs"], special, 512, steps=16),
            "packing": measure_packing(splits["paragraphs"], special, 512),
        }
    write("data", rows_of(details), details, folder=options.out)


if __name__ == "__main__":
    main()
