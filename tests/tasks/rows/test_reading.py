"""Formats, columns, encodings; and that what cannot be read says where and what to do."""

import gzip
import json
import sys
import types

import pytest

from terrazzo.errors import InputError
from terrazzo.tasks.rows import read_examples, read_lines, read_rows
from terrazzo.tasks.task import BadRow, Example

ROWS = [("gut, sehr gut", "pos"), ('er sagte "nein"', "neg"), ("zwei\nZeilen", "pos")]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def got(path, kind="label", **options):
    return [(example.text, example.target) for example in read_examples(path, kind, **options)]


def as_jsonl(rows):
    return "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n" + as_jsonl(ROWS)),
        ("a.json", as_jsonl(ROWS)),
        ("a.json", json.dumps([{"sentence": text, "class": label} for text, label in ROWS], indent=1)),
        (
            "a.csv",
            '\ufefftext;id;label\r\ngut, sehr gut;1;pos\r\n"er sagte ""nein""";2;neg\r\n"zwei\nZeilen";3;pos\r\n',
        ),
        ("a.csv", "label,content\npos,'gut, sehr gut'\nneg,'er sagte \"nein\"'\npos,'zwei\nZeilen'\n"),
    ],
)
def test_the_same_rows_from_every_text_format(tmp_path, name, text):
    assert got(write(tmp_path / name, text)) == ROWS


def test_tab_separated_text_may_hold_lone_quotes_and_compressed_files_are_unpacked(tmp_path):
    text = 'sentence\tlabel\n" ein Zitat ohne Ende\t0\nkurz\t1\r\n'
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(text.encode()))
    assert got(tmp_path / "a.tsv.gz") == [('" ein Zitat ohne Ende', "0"), ("kurz", "1")]


def test_columns_by_number_in_files_without_a_header(tmp_path):
    file = write(tmp_path / "a.tsv", "gj04\t1\t\tEin Satz.\ngj04\t0\t*\tSatz ein.\tRechte\n")
    assert got(file, fields={"text": "3", "label": "1"}) == [("Ein Satz.", "1"), ("Satz ein.", "0")]


def test_parquet_names_classes_by_its_metadata(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {
        "words": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        "ner_tags": {"feature": {"names": ["O", "B-PER"], "_type": "ClassLabel"}, "_type": "List"},
    }
    table = arrow.table({"words": [["Ada", "schläft"]], "ner_tags": [[1, 0]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    (example,) = read_examples(tmp_path / "a.parquet", "tag")
    assert (example.text, example.words, example.target) == ("Ada schläft", ((0, 3), (4, 11)), ("B-PER", "O"))


def test_hub_names_and_their_class_numbers(monkeypatch):
    class Data(list):
        features = types.SimpleNamespace(to_dict=lambda: {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}})

    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return Data([{"question": "q", "sentence": "s", "label": 1}, {"question": "q", "sentence": "s", "label": -1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    rows = read_examples("hf:nyu-mll/glue:qnli:validation", "pair", keep_bad=True)
    read_examples("nyu-mll/glue:qnli", "pair", split="test", keep_bad=True)
    assert asked == [("nyu-mll/glue", "qnli", "validation"), ("nyu-mll/glue", "qnli", "test")]
    assert isinstance(rows[0], Example) and (rows[0].text, rows[0].other, rows[0].target) == ("q", "s", "yes")
    assert isinstance(rows[1], BadRow) and "there is none" in rows[1].message


def test_several_classes_values_and_problems(tmp_path):
    lines = [{"text": "a", "label": ["x", "y"], "score": 0.5, "problem": "p"}, {"text": "b", "label": [], "score": 3}]
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert got(file) == [("a", ("x", "y")), ("b", ())]
    assert got(file, "regression") == [("a", 0.5), ("b", 3.0)]
    first, second = read_examples(file, "multi", keep_bad=True)
    assert isinstance(first, Example) and first.problem == "p" and isinstance(second, BadRow)


def test_a_row_stands_where_it_begins(tmp_path):
    file = write(tmp_path / "a.csv", 'text,label\n"zwei\nZeilen",a\n\neine,b\n')
    assert [example.where.rpartition(", ")[2] for example in read_examples(file, "label")] == ["line 2", "line 5"]


def test_columns_used_and_left_are_told(tmp_path):
    file = write(tmp_path / "a.csv", "idx,premise,hypothesis,gold_label,genre\n7,p,h,neutral,fiction\n")
    rows = read_rows(file, "pair")
    assert rows.columns == {"a": "premise", "b": "hypothesis", "label": "gold_label", "id": "idx"}
    assert rows.ignored == ("genre",)
    assert isinstance(rows.examples[0], Example) and rows.examples[0].id == "7"


def test_another_encoding_is_refused_by_byte_and_line_and_read_by_name(tmp_path):
    file = write(tmp_path / "a.csv", "text,label\nja,0\nMädchen,1\n", "latin-1")
    with pytest.raises(InputError, match=r"a.csv, line 3: byte 17 \(0xe4\) is not UTF-8.*iconv -f latin1"):
        read_examples(file, "label")
    assert got(file, encoding="latin-1")[1] == ("Mädchen", "1")
    rows = read_examples(file, "label", keep_bad=True)
    assert isinstance(rows[0], Example) and isinstance(rows[1], BadRow) and "0xe4" in rows[1].message


def test_lines_stream_and_bad_ones_stay_in_place():
    lines = [b'\xef\xbb\xbf"bare"\n', b"\n", b'{"tweet": "t"}', b"oops\n", b'"M\xe4dchen"', b'["a", "b"]', b"3", b'" "']
    given = iter(lines)
    rows = read_lines(given, "multi", {"text": "tweet"})
    assert next(rows).text == "bare" and next(given) == b"\n"  # no line is read ahead
    found = [row.message if isinstance(row, BadRow) else (row.text, row.other) for row in rows]
    assert found[0] == ("t", None) and found[3] == ("a", "b")
    for place, message in ((1, "column 1: not JSON"), (2, "0xe4"), (4, "3 is no row"), (5, "blank")):
        assert message in found[place]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "the file is empty"),
        ("text,label\n", {}, "holds no rows"),
        (
            "txt,label\na,b\n",
            {},
            r"no column for 'text'; the columns are txt, label: name it with --fields text=COLUMN",
        ),
        ("text,label\na,b\n", {"fields": {"text": "txt"}}, "no column 'txt' for 'text'"),
        ("text,label\na,b\n", {"fields": {"texts": "text"}}, "no field 'texts'; did you mean 'text'"),
        ("sentence,content,label\na,b,c\n", {}, "several columns could be 'text'"),
        ("text,text\na,b\n", {}, "names 'text' twice"),
        (
            "text,label\na,b\nc,d,e\n",
            {},
            "line 3: 3 columns separated by ',' where the first line has 2, the last is 'e'",
        ),
        ("text,label\na,b\n ,d\nc,\n", {}, r"line 3: text: the text is blank.*1 more bad rows, the next in .*line 4"),
        ("text,label\na,b\nc,\n", {}, "line 3: label: there is none"),
        ('text,label\n"a,b\nc,d\n', {}, "row that starts in line 2: not CSV.*unclosed quote"),
        ("text,label\na,b\n", {"split": "test"}, "a file is one split"),
        ("text,label\na,b\n", {"encoding": "klingon"}, "no such encoding"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        read_examples(write(tmp_path / "a.csv", text), "label", **options)


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (
            "label",
            [{"text": "a", "label": "x"}, {"text": "b", "label": 1}],
            "row 2: label: 1 is a number where .* a text",
        ),
        ("label", [{"text": "a", "label": 0.25}], "a fraction"),
        ("label", [{"text": 3, "label": "x"}], "text: 3 is not text"),
        ("regression", [{"text": "a", "score": "3,5"}], "score: '3,5' is no number"),
        ("regression", [{"text": "a", "score": float("nan")}], "not finite"),
        ("tag", [{"tokens": ["a", "b"], "tags": ["O"]}], "2 tokens and 1 tags"),
        ("tag", [{"tokens": ["a", " "], "tags": ["O", "O"]}], "tokens: number 2 is ' '"),
        ("tag", [{"text": "abc", "spans": [[1, 4, "X"]]}], "1 to 4 is no stretch of a text of 3 characters"),
        ("tag", [{"text": "abc", "spans": [{"start": 0, "end": 1, "label": "X", "text": "b"}]}], "are 'a', not 'b'"),
        ("span", [{"question": "q", "context": "c"}], "no column for 'answers'"),
        ("pair", [{"premise": "p", "label": "x"}], "no columns for 'a' and 'b'"),
        (
            "label",
            [{"question": "q", "sentence": "s", "label": "x"}],
            "'question' and 'sentence': take the task 'pair'",
        ),
        ("lable", [{"text": "a", "label": "x"}], "no such kind of task; did you mean 'label'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, kind, rows, message):
    with pytest.raises(InputError, match=message):
        read_examples(write(tmp_path / "a.json", json.dumps(rows)), kind)


def test_answers_are_not_looked_at_where_none_are_wanted(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "a", "label": null}\n{"text": "b"}\n')
    assert got(file, labelled=False) == [("a", None), ("b", None)]
    assert got(write(tmp_path / "plain.txt", "eins\n\nzwei\n"), labelled=False) == [("eins", None), ("zwei", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfea\0", "UTF-16; convert it: iconv -f utf-16"), (b"a\0b", "NUL bytes"), (b"eins\nzwei\n", "cannot tell")],
)
def test_files_that_are_no_rows(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path / "a.txt", "label")


def test_a_json_object_that_is_no_list_names_its_keys(tmp_path):
    with pytest.raises(InputError, match="no list of rows .keys 'train', 'test'"):
        read_examples(write(tmp_path / "a.json", '{"train": [["a", "b"]], "test": []}'), "label")
