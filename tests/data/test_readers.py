import io
import sys
import types

import pytest

from terrazzo.data import readers
from terrazzo.data.readers import batches, read_csv, read_jsonl, read_parquet, read_txt
from terrazzo.data.sources import Source, find_sources
from terrazzo.errors import InputError

WRAPPED = "Ein Absatz über\nzwei Zeilen.\n\n \n  Noch einer.\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["Ein Absatz über", "zwei Zeilen.", "", " ", "  Noch einer."]),
        ("paragraph", ["Ein Absatz über zwei Zeilen.", "Noch einer."]),
        ("auto", ["Ein Absatz über zwei Zeilen.", "Noch einer."]),
        ("file", ["Ein Absatz über\nzwei Zeilen.\n\n \n  Noch einer."]),
    ],
)
def test_what_a_document_of_a_text_file_is(unit, expected):
    assert list(read_txt(io.BytesIO(WRAPPED.encode()), "a.txt", unit)) == expected


def test_auto_takes_lines_where_hardly_a_line_is_blank():
    texts = [f"document {i}" for i in range(400)]
    assert list(read_txt(io.BytesIO(("\n".join([*texts, "", "end"]) + "\n\n\n").encode()), "a.txt"))[:400] == texts


def test_jsonl_and_csv_rows_with_nulls_blank_lines_and_line_ends_in_fields():
    jsonl = b'{"text": "eins\\nzwei"}\n\n{"text": null, "id": 3}\n'
    assert list(read_jsonl(io.BytesIO(jsonl), "a.jsonl", "text")) == ["eins\nzwei", ""]
    table = b'id;body\r\n1;"two, ""lines""\nin one"\r\n2;plain\n'
    assert list(read_csv(io.BytesIO(table), "a.csv", "body")) == ['two, "lines"\nin one', "plain"]


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_jsonl, '{"text": "a"}\n{"text": \n', "f, line 2, column 10: not JSON"),
        (read_jsonl, '["a"]\n', 'f, line 1: a JSON list, not an object such as {"text": "..."}'),
        (read_jsonl, '{"body": "a", "id": 1}\n', "f, line 1: no field 'text'; the fields are body, id: choose"),
        (read_jsonl, '{"text": "a", "id": ' + "9" * 5000 + "}\n", "f, line 1: unreadable JSON"),
        (read_jsonl, '{"text": "a"}\n' + "[" * 100_000 + "\n", "f, line 2: unreadable JSON"),
        (read_jsonl, '{"text": 3}\n', "f, line 1: field 'text' holds 3, not text"),
        (read_csv, "id,body\n1,x\n", r"f, line 1 \(the header\): no field 'text'; the fields are id, body"),
        (read_csv, 'text,id\n"open,1\n', "f, in the row after line 1: not CSV separated by ','.*unclosed quote"),
        (
            read_csv,
            "text\nfine,\none, two\n",
            "f, line 3: 2 fields separated by ',' under a header of 1, .* ' two': put",
        ),
        (read_csv, "text,id\ra,1\r", "carriage returns without line feeds"),
        (read_parquet, "not parquet at all, but long enough to look", "f: damaged, or not a parquet file"),
    ],
)
def test_unreadable_rows_are_named_with_their_line(reader, content, message):
    with pytest.raises(InputError, match=message):
        list(reader(io.BytesIO(content.encode()), "f", "text"))


def test_documents_that_swallow_the_file_are_errors(monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE", 50)
    monkeypatch.setattr(readers, "MAX_FILE_DOCUMENT", 50)
    stream = io.BytesIO(b"some words\n" * 20)
    for unit, message in [("paragraph", "--document line"), ("file", "--document paragraph")]:
        with pytest.raises(InputError, match=f"a.txt: .*{message}"):
            list(read_txt(stream, "a.txt", unit))
        stream.seek(0)


def test_parquet_gives_the_column_and_names_the_others(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": ["a", None, "c"]}), tmp_path / "a.parquet")
    (source,), _ = find_sources([tmp_path / "a.parquet"])
    assert [text for texts, _ in batches(source, "text", "auto") for text in texts] == ["a", "", "c"]
    with pytest.raises(InputError, match="a.parquet: no field 'body'; the fields are id, text"):
        next(batches(source, "body", "auto"))


def test_skipping_gives_the_batches_that_would_have_come(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"document {i}\n" for i in range(25)))
    (source,), _ = find_sources([tmp_path / "a.txt"])
    whole = list(batches(source, "text", "line", max_documents=10))
    assert [len(texts) for texts, _ in whole] == [10, 10, 5]
    assert list(batches(source, "text", "line", skip=10, max_documents=10)) == whole[1:]


def test_hub_names_reach_datasets_as_repository_config_and_split(monkeypatch):
    calls = []

    class Rows(list):
        def skip(self, count):
            return self[count:]

    def load_dataset(*names, **options):
        calls.append((names, options))
        return Rows([{"text": "a"}, {"text": "b"}, {"text": "c"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    (source,), _ = find_sources(["hf:owner/name:de:validation"])
    assert source == Source("owner/name:de:validation", "hub", 0, "owner/name:de:validation")
    assert list(batches(source, "text", "auto", skip=1, max_documents=1)) == [(["b"], 1), (["c"], 2)]
    assert calls == [(("owner/name", "de"), {"split": "validation", "streaming": True})]
