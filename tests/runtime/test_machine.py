"""What a machine may use, and which products are exact and quick on it."""

from __future__ import annotations

from terrazzo.runtime.machine import Machine, this_machine


def test_products_by_instruction_set() -> None:
    old = Machine(cpu="old", instructions=("avx2", "avx512f"), cores=4)
    new = Machine(cpu="new", instructions=("avx2", "avx_vnni"), cores=4)
    assert (old.has_int8, new.has_int8, old.has_bf16) == (False, True, False)
    assert Machine(cpu="amx", instructions=("amx_bf16",), cores=1).has_bf16


def test_keys_tell_machines_apart() -> None:
    machine = Machine(cpu="x", instructions=("avx2",), cores=2)
    others = [
        Machine(cpu="y", instructions=("avx2",), cores=2),
        Machine(cpu="x", instructions=("avx2", "avx512f"), cores=2),
        Machine(cpu="x", instructions=("avx2",), cores=4),
    ]
    assert len({machine.key, *(other.key for other in others)}) == 4
    assert this_machine().cores >= 1
