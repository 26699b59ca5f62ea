"""What a machine may use, and which products are exact and quick on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrazzo.runtime.machine import Machine, cpu_quota, this_machine


@pytest.fixture
def groups(tmp_path):
    def write(membership: str, **files: str) -> float | None:
        (tmp_path / "self").write_text(membership)
        for name, text in files.items():
            file = tmp_path / "fs" / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return cpu_quota(tmp_path / "self", tmp_path / "fs")

    return write


def test_the_least_quota_of_version_2_counts(groups) -> None:
    assert groups("0::/a/b\n", a__cpu_dot_max="150000 100000\n", a__b__cpu_dot_max="max 100000\n") == 1.5


def test_version_1(groups) -> None:
    values = {"cpu__job__cpu_dot_cfs_quota_us": "50000\n", "cpu__job__cpu_dot_cfs_period_us": "100000\n"}
    assert groups("4:memory:/else\n1:cpu,cpuacct:/job\n", **values) == 0.5


def test_a_path_of_another_namespace_falls_back_to_the_root(groups) -> None:
    assert groups("0::/not/mounted/here\n", cpu_dot_max="400000 100000\n") == 4


def test_without_limits_there_is_no_quota(groups, tmp_path) -> None:
    assert groups("0::/\n1:cpu:/\n", cpu_dot_max="max 100000\n") is None
    assert cpu_quota(Path(tmp_path / "absent"), tmp_path) is None


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
