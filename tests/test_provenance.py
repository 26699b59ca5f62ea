from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terrazzo import provenance
from terrazzo.provenance import cpu_quota, write_json_atomic, write_text_atomic


def test_provenance_is_plain_json_and_names_what_ran():
    facts = json.loads(json.dumps(provenance.provenance(), allow_nan=False))
    assert facts["versions"]["torch"].startswith("2.")
    assert facts["hardware"]["cores"] >= 1 and facts["hardware"]["memory_bytes"] > 2**28
    assert facts["hardware"]["torch_threads"] == 1


def test_no_commit_is_claimed_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib" / "terrazzo" / "provenance.py"))
    assert provenance.commit() == {"commit": None, "dirty": None}


def test_peak_memory_stays_after_what_made_it_is_gone():
    code = """
from terrazzo.provenance import peak_memory_bytes
before = peak_memory_bytes()
held = b"x" * 2**27
del held
print((peak_memory_bytes() - before) / 2**27)
"""
    source = Path(provenance.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=source, check=True)
    assert 0.9 < float(done.stdout) < 1.1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "result.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"a": math.nan})

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_text_atomic(path, "new")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


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
