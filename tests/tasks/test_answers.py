"""Agreement of answers on cases worked out by hand from the rules of the SQuAD scripts."""

import pytest

from terrazzo.tasks.answers import answer_scores, normalised


def test_case_punctuation_articles_and_spaces_do_not_count() -> None:
    assert normalised("The  U.S.\tAn 'A-Team', theatre\n") == "us ateam theatre"
    assert normalised("a an the") == ""
    assert normalised("Éa «the» 東京。") == "éa « » 東京。"


@pytest.mark.parametrize(
    ("said", "answers", "exact", "f1"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 * 1 * 0.5 / 1.5),
        ("Broncos of Denver in 2016", ["Denver Broncos"], 0, 2 * 0.4 * 1 / 1.4),
        ("in Denver", ["Denver Broncos", "Denver, Colorado", "in Denver, Colorado"], 0, 2 * 1 * (2 / 3) / (5 / 3)),
        ("no no", ["no yes no no"], 0, 2 * 1 * 0.5 / 1.5),
        ("Carolina", ["Denver"], 0, 0),
        ("", [], 1, 1),
        ("Denver", [], 0, 0),
        ("", ["Denver"], 0, 0),
        ("the", [], 1, 1),
        ("", ["the", "Denver"], 0, 0),
        ("", ["the"], 1, 1),
    ],
)
def test_the_best_of_the_answers_counts(said: str, answers: list[str], exact: float, f1: float) -> None:
    assert answer_scores(said, answers) == (exact, pytest.approx(f1))
