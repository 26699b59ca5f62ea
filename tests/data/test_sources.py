import bz2
import gzip
import lzma
import os

import pytest

from terrazzo.data import sources
from terrazzo.data.readers import batches
from terrazzo.data.sources import find_sources, lines, open_source
from terrazzo.errors import InputError

TEXT = "erste Zeile\nzweite Zeile mit ü\n".encode()


def read_lines(path):
    (source,), _ = find_sources([path])
    with open_source(source) as (stream, position):
        return [text for _, text in lines(stream, source.name)], position()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_every_compression_gives_the_same_lines_and_the_position_in_the_file(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed(TEXT, suffix))
    assert read_lines(path) == (["erste Zeile", "zweite Zeile mit ü"], path.stat().st_size)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_file_cut_short_is_an_error_and_not_a_shorter_file(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed(b"".join(b"line %d\n" % i for i in range(40_000)), suffix)[:-400])
    with pytest.raises(InputError, match=rf"a.txt{suffix}: damaged, or not a {suffix} file.*fetch it again"):
        read_lines(path)


def test_folders_are_walked_in_order_without_hidden_files_the_output_and_unknown_suffixes(tmp_path):
    for name in ("b.txt", "a/z.jsonl", "a/.hidden.txt", ".git/x.txt", "out/data.json", "notes.docx", "a/empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"{}\n")
    found, skipped = find_sources([tmp_path], exclude=tmp_path / "out")
    assert [str(source.path.relative_to(tmp_path)) for source in found] == ["b.txt", "a/z.jsonl"]
    assert [name.removeprefix(f"{tmp_path}/") for name in skipped] == ["notes.docx", "a/empty.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt: the file is empty"),
        ("a.docx", b"x", r"a.docx: unknown suffix '.docx'; terrazzo reads .txt"),
        ("a.txt", b"\x89PNG\x00\x01\x02" * 9, "a.txt: is binary, not text"),
        ("a.txt", b"%PDF-1.7 text", r"is binary, not text \(it looks like a PDF\)"),
        ("a.txt", "hällo\n".encode("utf-16"), "a.txt: is UTF-16; convert it: iconv -f UTF-16"),
        (
            "a.txt",
            b"fine\nl\xe4cheln\n",
            r"a.txt, line 2: byte 6 \(0xe4\) is not UTF-8; convert .*iconv -f WINDOWS-1252",
        ),
        ("a.txt", b"\xef\xbb\xbfl\xe4\n", r"line 1: byte 4 \(0xe4\)"),
        ("a.txt", b"x" * 70_000 + b"\n\0\n", "a.txt, line 2: holds NUL bytes"),
        ("a.txt", b"ab\n" + b"x" * 200, "a.txt, line 2: longer than .* MiB"),
    ],
)
def test_unusable_files_are_named_with_line_and_mend(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(sources, "MAX_LINE", 100 if b"ab\n" in content else 1 << 20)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / name)


def test_missing_names_empty_folders_and_repeated_files_are_errors(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "none").mkdir()
    for names, message in [
        ([], "no source given"),
        ([""], "an empty source name"),
        (["nowhere.txt"], "nowhere.txt: no such file or folder"),
        ([tmp_path / "none"], "none: the folder holds no files"),
        ([tmp_path, tmp_path / "a.txt"], "a.txt: named twice"),
    ]:
        with pytest.raises(InputError, match=message):
            find_sources(names)


def test_dead_links_and_names_that_are_not_utf8_are_errors(tmp_path):
    (tmp_path / "a.txt").symlink_to("nowhere.txt")
    with pytest.raises(InputError, match=r"a.txt: cannot be read \(No such file or directory\); mend the link"):
        find_sources([tmp_path])
    (tmp_path / "a.txt").unlink()
    folder = os.fsencode(tmp_path)
    try:
        with open(folder + b"/\xff.txt", "wb") as file:
            file.write(b"x\n")
    except OSError:
        pytest.skip("the file system wants UTF-8 names")
    with pytest.raises(InputError, match=r"\\xff.txt: the name is not UTF-8"):
        find_sources([tmp_path])
    os.rename(folder + b"/\xff.txt", folder + b"/\xff.docx")
    (tmp_path / "b.txt").write_text("x\n")
    assert find_sources([tmp_path])[1] == [f"{tmp_path}/\\xff.docx"]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a.txt.zst: reading it needs pyarrow: pip install 'terrazzo\[data\]'"):
        read_lines(tmp_path / "a.txt.zst")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (source,), _ = find_sources(["hf:owner/name"])
    with pytest.raises(InputError, match=r"owner/name: no such file or folder; .*pip install 'terrazzo\[data\]'"):
        next(batches(source, "text", "auto"))


def compressed(content, suffix):
    if suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        return pyarrow.compress(content, "zstd", asbytes=True)
    return {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix](content)
