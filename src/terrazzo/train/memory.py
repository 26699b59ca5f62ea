"""How many bytes a training step takes, from shapes, and how many tokens a micro-batch may hold."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, parameter_count
from terrazzo.nn.cross_entropy import CHUNK_BYTES
from terrazzo.train.distributed import Ranks
from terrazzo.train.stage import Sampling

#: Tokens beyond which larger products gain no speed.
FAST_TOKENS = {"cpu": 4096, "cuda": 65_536}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank's training step."""

    states: int
    per_token: int
    logits: int

    def total(self, micro_tokens: int) -> int:
        """Weights, gradients, optimizer state, activations of one micro-batch and one chunk of logits."""
        return self.states + self.per_token * micro_tokens + self.logits


def estimate(config: EncoderConfig, device: torch.device, bf16: bool, optimizer_bytes: int = 8) -> MemoryEstimate:
    """Bytes of training `config`: fp32 weights and gradients, `optimizer_bytes` a parameter, saved activations.

    Saved for the backward pass, in units of the compute type: per token and layer about 11 widths (input, QKV,
    attention output, residuals, norms) and 2 (plain) or 4 (gated) inner widths.
    """
    element = 2 if bf16 else 4
    inner = sum(map(config.layer_mlp_width, range(config.depth)))
    layers = 11 * config.width * config.depth + (4 if config.gated else 2) * inner
    per_token = element * (layers + 8 * config.width)
    vocabulary_gradient = 4 * config.padded_vocab_size * config.width
    logits = 3 * CHUNK_BYTES[device.type] + vocabulary_gradient
    return MemoryEstimate((8 + optimizer_bytes) * parameter_count(config), per_token, logits)


def available_bytes(device: torch.device) -> int:
    """Memory that a run may take: free GPU memory, or what Linux calls available, bounded by the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read().strip()
        return min(free, int(limit)) if limit.isdigit() else free
    except OSError:
        return free


def choose_micro_tokens(config: EncoderConfig, sampling: Sampling, ranks: Ranks, bf16: bool) -> int:
    """Tokens of a micro-batch: those wanted, or what fits in half of the free memory, is fast, and is a step's share.

    Raises:
        InputError: the model, or the wanted micro-batch, does not fit in memory.
    """
    device, max_len = ranks.device, sampling.max_len
    memory = estimate(config, device, bf16)
    free = ranks.smallest(available_bytes(device) // (ranks.local_size if device.type == "cpu" else 1))
    smallest = sampling.micro_tokens or max_len
    if memory.total(smallest) > free:
        raise InputError(
            f"the model needs about {memory.total(smallest) / 2**30:.1f} GiB for micro-batches of {smallest} tokens, "
            f"{free / 2**30:.1f} GiB are free: take a smaller --size, sampling.max_len or sampling.micro_tokens"
        )
    if sampling.micro_tokens is not None:
        return max(sampling.micro_tokens, max_len)
    fitting = int((free / 2 - memory.states - memory.logits) // memory.per_token)
    share = int(1.1 * sampling.batch_tokens / ranks.world_size)
    return max(max_len, min(fitting, FAST_TOKENS[device.type], share))
