"""What this machine is, as far as it decides which runtime is fastest and whether int8 is exact."""

from __future__ import annotations

from dataclasses import dataclass

from terrazzo.provenance import hardware

#: Instructions that add products of 8-bit numbers in 32 bits, without saturating in between.
_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A CPU and what a process may use of it.

    Args:
        cpu: model name.
        instructions: instruction sets that decide speed, those of `/proc/cpuinfo`.
        cores: that this process may keep busy: its affinity, and its container's quota, rounded up.
    """

    cpu: str
    instructions: tuple[str, ...]
    cores: int

    @property
    def key(self) -> str:
        """What measured choices are remembered under."""
        return f"{self.cpu}, {' '.join(self.instructions) or 'no vector instructions known'}, {self.cores} cores"

    @property
    def has_int8(self) -> bool:
        """Whether products of int8 are native; without, they are slower than fp32 and older CPUs saturate."""
        return any(name in self.instructions for name in _INT8)

    @property
    def has_bf16(self) -> bool:
        """Whether products of bf16 are native; without, they are computed in fp32 at no gain."""
        return any(name in self.instructions for name in _BF16)


def this_machine() -> Machine:
    """The machine that runs this process."""
    found = hardware()
    return Machine(cpu=found["cpu"], instructions=tuple(found["cpu_flags"]), cores=found["cores"])
