"""Column files of several makers."""

import pytest

from terrazzo.errors import InputError
from terrazzo.tasks.rows import read_examples

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
# # I-NP O

# NN I-NP O
Peter NNP I-NP I-PER
"""
GERMEVAL = """#\thttp://de.wikipedia.org/wiki/Ecce [2009]
1\tBerliner\tB-LOCderiv\tO
2\t2006\tO\tB-OTH

#\thttp://n-tv.de
1\t"\tO\tO
"""


def rows(tmp_path, text, name="a.conll", **options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return [(example.text, example.target) for example in read_examples(tmp_path / name, "tag", **options)]


def test_word_first_and_tag_last_in_conll_2003(tmp_path):
    expected = [("EU rejects #", ("I-ORG", "O", "O")), ("# Peter", ("O", "I-PER"))]
    assert rows(tmp_path, CONLL) == expected
    assert rows(tmp_path, CONLL.replace("\n", "\r\n"), "eng.train") == expected
    chunks = rows(tmp_path, CONLL, fields={"tokens": "0", "tags": "2"})
    assert chunks[0] == ("EU rejects #", ("I-NP", "I-VP", "I-NP"))


def test_numbered_words_comments_and_outer_tags_in_germeval_2014(tmp_path):
    assert rows(tmp_path, GERMEVAL, "a.tsv") == [("Berliner 2006", ("B-LOCderiv", "O")), ('"', ("O",))]
    assert rows(tmp_path, GERMEVAL, fields={"tokens": "1", "tags": "3"})[0][1] == ("O", "B-OTH")


def test_a_comment_as_wide_as_the_other_lines_is_told_by_its_last_word(tmp_path):
    assert rows(tmp_path, "# document-7\nEU B-ORG\n\n# O\nja O\n") == [("EU", ("B-ORG",)), ("# ja", ("O", "O"))]


def test_a_header_is_left_out_and_a_table_of_whole_sentences_is_told_apart(tmp_path):
    assert rows(tmp_path, "token\ttag\nEU\tB-ORG\n\nja\tO\n", "a.tsv") == [("EU", ("B-ORG",)), ("ja", ("O",))]
    assert rows(tmp_path, "tokens\ttags\nEU ruft\tB-ORG O\nja\tO\n", "a.tsv")[0] == ("EU ruft", ("B-ORG", "O"))


def test_words_without_tags_where_none_are_wanted(tmp_path):
    assert rows(tmp_path, "EU\nruft\n\nja\n", labelled=False) == [("EU ruft", None), ("ja", None)]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("EU B-ORG\nruft\nja O\n", {}, "line 2: 1 columns where there are 2 in the other lines .*'ruft'"),
        ("New York B-LOC\nruft O\nja O\n", {}, "line 1: 3 columns where there are 2"),
        ("EU B-ORG\n", {"fields": {"tags": "7"}}, "line 1: 2 columns where there are at least 8"),
        ("EU B-ORG\n", {"fields": {"tags": "ner"}}, "columns of such a file have numbers"),
    ],
)
def test_lines_that_do_not_fit(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        rows(tmp_path, text, **options)


def test_a_column_file_is_for_taggers(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    with pytest.raises(InputError, match="for the task 'tag'"):
        read_examples(tmp_path / "a.conll", "label")
