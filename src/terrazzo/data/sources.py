"""Where text comes from: files, folders and dataset names, found, opened and checked before anything is written."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import importlib
import io
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from terrazzo.errors import InputError

FORMATS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
MAX_LINE = 8 << 20  # bytes
_SNIFFED = 1 << 16
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")
_SIGNATURES = {b"%PDF": "a PDF", b"PK\x03\x04": "a zip or office file", b"\x1f\x8b": "gzip", b"PAR1": "parquet"}


@dataclass(frozen=True)
class Source:
    """One file or one hub dataset; `size` is its bytes on disk (0 for the hub), `identity` tells its content."""

    name: str
    kind: str
    size: int = 0
    identity: str = ""

    @property
    def path(self) -> Path:
        return Path(self.name)


def find_sources(names: Sequence[str | Path], exclude: Path | None = None) -> tuple[list[Source], list[str]]:
    """Resolve what the person named into readable sources, in a fixed order; also the files of folders left out.

    Folders are walked recursively in sorted order without hidden files, without `exclude` (the output folder) and
    without empty files and unknown suffixes; those two are returned by name.

    Raises:
        InputError: nothing named, a missing path, an unknown suffix, an empty file or folder, a binary or UTF-16 file.
    """
    if not names:
        raise InputError("no source given: name at least one file, folder or dataset")
    found: list[Source] = []
    skipped: list[str] = []
    for name in map(str, names):
        if not name:
            raise InputError("an empty source name: name a file, folder or dataset (. is the current folder)")
        path = Path(name.removeprefix("hf:"))
        if path.is_dir() and not name.startswith("hf:"):
            inside, left_out = _walk(path, exclude)
            found.extend(inside)
            skipped.extend(left_out)
        elif path.exists() and not name.startswith("hf:"):
            found.append(_file_source(path))
        else:
            found.append(_hub_source(name))
    name, count = Counter(source.name for source in found).most_common(1)[0]
    if count > 1:
        raise InputError(f"{name}: named twice among the sources; name every file once")
    return found, skipped


@contextmanager
def open_source(source: Source) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The decompressed bytes of a file, and a function that tells how many bytes of the file were read so far.

    Raises:
        InputError: a damaged, cut short or misnamed compressed file; a .zst file without pyarrow.
    """
    suffix = source.path.suffix
    with open(source.path, "rb") as raw:
        try:
            yield _decompress(raw, suffix), raw.tell
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(f"{source.name}: damaged, or not a {suffix} file ({error}); fetch it again") from None


def lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of UTF-8 text without their line ends.

    Raises:
        InputError: a line over 8 MiB, NUL bytes, or bytes that are not UTF-8, each with its line.
    """
    number, offset = 0, 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(
                f"{name}, line {number}: longer than {MAX_LINE >> 20} MiB; give every document or paragraph a line of "
                f"its own, e.g. with `fold -s -w 2000`"
            )
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if b"\0" in line:
            raise InputError(f"{name}, line {number}: holds NUL bytes, so it is not text; leave the file out")
        try:
            yield number, text.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            at = offset + len(line) - len(text) + error.start
            problem = f"{name}, line {number}: byte {at} (0x{text[error.start]:02x}) is not UTF-8"
            raise InputError(f"{problem}; {_converting(name, 'WINDOWS-1252')}") from None
        offset += len(line)


def _walk(folder: Path, exclude: Path | None) -> tuple[list[Source], list[str]]:
    found: list[Source] = []
    skipped: list[str] = []
    for directory, subfolders, files in os.walk(folder):
        here = Path(directory)
        hidden = [d for d in subfolders if d.startswith(".") or (exclude and (here / d).resolve() == exclude.resolve())]
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        for name in sorted(file for file in files if not file.startswith(".")):
            path = here / name
            if _kind(path) is None or _size(path) == 0:
                skipped.append(_shown(path))
            else:
                found.append(_file_source(path))
    if not found:
        suffixes = sorted({Path(name).suffix or "no suffix" for name in skipped})
        seen = f"only empty files or unknown kinds ({', '.join(suffixes)})" if skipped else "no files"
        raise InputError(f"{folder}: the folder holds {seen}; {_readable()}")
    return found, skipped


def _file_source(path: Path) -> Source:
    kind, size = _kind(path), _size(path)
    if _shown(path) != str(path):
        raise InputError(f"{_shown(path)}: the name is not UTF-8; rename the file or folder")
    if kind is None:
        raise InputError(f"{path}: unknown suffix {path.suffix!r}; {_readable()}")
    if size == 0:
        raise InputError(f"{path}: the file is empty; leave it out or fetch it again")
    if kind == "parquet" and path.suffix != ".parquet":
        raise InputError(f"{path}: parquet is compressed inside; unpack the file to .parquet first")
    source = Source(str(path), kind, size, _identity(path, size))
    if kind != "parquet":
        _sniff(source)
    return source


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        mend = "mend the link, or remove it" if path.is_symlink() else "leave it out"
        raise InputError(f"{_shown(path)}: cannot be read ({error.strerror}); {mend}") from None
    if size and not os.access(path, os.R_OK):
        raise InputError(f"{_shown(path)}: cannot be read (permission denied); make it readable, or leave it out")
    return size


def _shown(path: Path) -> str:
    """A path that can be written as UTF-8: stray bytes in it as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _hub_source(name: str) -> Source:
    bare = name.removeprefix("hf:")
    if not _HUB_NAME.fullmatch(bare) or (not name.startswith("hf:") and _kind(Path(bare)) is not None):
        raise InputError(f"{name}: no such file or folder")
    return Source(bare, "hub", identity=bare)


def _kind(path: Path) -> str | None:
    inner = Path(path.stem) if path.suffix in COMPRESSIONS else path
    return FORMATS.get(inner.suffix.lower())


def _readable() -> str:
    return f"terrazzo reads {', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}"


def _identity(path: Path, size: int) -> str:
    """Digest of a small file, or of the size and both ends of a large one, so that a resumed run knows its sources."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        digest.update(file.read(1 << 22))
        if size > 1 << 23:
            file.seek(-(1 << 22), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def _sniff(source: Source) -> None:
    """Refuse binary and UTF-16 files at the start instead of after hours of reading."""
    with open_source(source) as (stream, _):
        head = stream.read(_SNIFFED)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{source.name}: is UTF-16; {_converting(source.name, 'UTF-16')}")
    guess = next((f" (it looks like {what})" for magic, what in _SIGNATURES.items() if head.startswith(magic)), "")
    control = sum(byte < 32 and byte not in b"\t\n\r\f\v\x1b" for byte in head)
    if guess or b"\0" in head or control > len(head) // 20:
        raise InputError(f"{source.name}: is binary, not text{guess}; extract its text, or leave the file out")


def _converting(name: str, encoding: str) -> str:
    unpacked = name.removesuffix(Path(name).suffix) if Path(name).suffix in COMPRESSIONS else name
    first = "convert it" if unpacked == name else "unpack and convert it"
    return f"{first}: iconv -f {encoding} -t UTF-8 {unpacked} > converted{Path(unpacked).suffix}"


def _decompress(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if suffix == ".zst":
        # pyarrow and not `zstandard`, whose reader takes a file cut short for a whole one.
        return cast(BinaryIO, io.BufferedReader(pyarrow(raw.name).CompressedInputStream(raw, "zstd"), 1 << 20))
    return raw


def pyarrow(name: str) -> Any:
    """The pyarrow module, which reads .parquet and .zst.

    Raises:
        InputError: it is not installed; `name` is the file that needs it.
    """
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise InputError(f"{name}: reading it needs pyarrow: pip install 'terrazzo[data]'") from None
