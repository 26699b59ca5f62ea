"""Metrics against scikit-learn and scipy, intervals against loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from terrazzo.errors import InputError
from terrazzo.tasks import Example, Result
from terrazzo.tasks.metrics import (
    RowMetric,
    SumMetric,
    accuracy_of,
    auroc,
    bootstrap,
    bootstrap_difference,
    class_counts,
    confusion,
    f1_of,
    mcc_of,
    pearson,
    spearman,
    tpr_at_fpr,
)

EXACT = {"rel": 1e-12, "abs": 1e-12}
ROWS = [Example(text="x", target=t) for t in "abcabcabcaab"]
SAID = [Result(label=t) for t in "abcacbabcaaa"]
OTHER = [Result(label=t) for t in "abcabcabcbbb"]


def one_hot(index_N, classes):
    return index_N[:, None] == np.arange(classes)


def right_rows(examples, results):
    return np.array([[e.target == r.label, 1.0] for e, r in zip(examples, results, strict=True)])


ACCURACY = SumMetric(right_rows, lambda sums: sums[..., 0] / sums[..., 1])


@pytest.mark.parametrize("classes", [2, 4])
def test_class_metrics_equal_scikit_learn(classes):
    draw = np.random.default_rng(classes)
    right, said = draw.integers(classes, size=300), draw.integers(classes, size=300)
    said = np.where(draw.random(300) < 0.4, right, said)
    known = classes + 1  # one of them does not occur
    sums = class_counts(one_hot(right, known), one_hot(said, known), right == said).sum(0)
    assert accuracy_of(sums) == pytest.approx(sk.accuracy_score(right, said), **EXACT)
    for average in ("macro", "micro"):
        assert f1_of(sums, average) == pytest.approx(sk.f1_score(right, said, average=average), **EXACT)
    assert mcc_of(sums) == pytest.approx(sk.matthews_corrcoef(right, said), **EXACT)
    assert f1_of(sums, "binary", 0) == pytest.approx(sk.f1_score(right == 0, said == 0), **EXACT)
    names = [str(i) for i in range(classes)]
    table = confusion([str(i) for i in right], [str(i) for i in said], names)
    np.testing.assert_array_equal(table, sk.confusion_matrix(right, said))


def test_a_missing_answer_is_one_more_class_that_is_never_right():
    right, said = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 1, -1, 0, 0, -1])
    sums = class_counts(one_hot(right, 2), one_hot(said, 2), right == said).sum(0)
    assert mcc_of(sums) == pytest.approx(sk.matthews_corrcoef(right, said), **EXACT)
    assert f1_of(sums, "macro") == pytest.approx(sk.f1_score(right, said, average="macro", labels=[0, 1]), **EXACT)


def test_several_classes_equal_scikit_learn():
    draw = np.random.default_rng(0)
    right, said = draw.random((200, 5)) < 0.3, draw.random((200, 5)) < 0.3
    said[:, 3] &= right[:, 3]
    sums = class_counts(right, said, (right == said).all(1)).sum(0)
    assert accuracy_of(sums) == pytest.approx(sk.accuracy_score(right, said), **EXACT)
    for average in ("macro", "micro"):
        assert f1_of(sums, average) == pytest.approx(sk.f1_score(right, said, average=average), **EXACT)


def test_curves_and_correlations_equal_scikit_learn_and_scipy():
    draw = np.random.default_rng(0)
    positive = draw.random(500) < 0.4
    scores = np.round(draw.normal(size=500) + positive, 1)  # rounded: many ties
    assert auroc(positive, scores) == pytest.approx(sk.roc_auc_score(positive, scores), **EXACT)
    false, true, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
    for fpr in (0.0, 0.01, 0.1, 0.5, 1.0):
        assert tpr_at_fpr(positive, scores, fpr) == pytest.approx(true[false <= fpr].max(), **EXACT)
    other = scores + np.round(draw.normal(size=500), 1)
    assert pearson(scores, other) == pytest.approx(stats.pearsonr(scores, other).statistic, **EXACT)
    assert spearman(scores, other) == pytest.approx(stats.spearmanr(scores, other).statistic, **EXACT)


def test_undefined_values():
    assert np.isnan(auroc(np.ones(3), np.arange(3))) and np.isnan(tpr_at_fpr(np.zeros(3), np.arange(3)))
    assert np.isnan(pearson(np.ones(3), np.arange(3.0)))
    assert mcc_of(class_counts(one_hot(np.zeros(3), 2), one_hot(np.zeros(3), 2), np.ones(3)).sum(0)) == 0


def test_every_way_to_resample_gives_the_same_interval():
    slow = lambda examples, results: right_rows(examples, results)[:, 0].mean()  # noqa: E731
    by_row = RowMetric(right_rows, lambda rows: rows[:, 0].mean())
    index = np.random.default_rng(3).integers(12, size=(200, 12))
    right = np.array([e.target == r.label for e, r in zip(ROWS, SAID, strict=True)])
    expected = tuple(np.percentile(right[index].mean(1), [2.5, 97.5]))
    for way in (slow, by_row):
        found = bootstrap(way, ROWS, SAID, samples=200, seed=3)
        assert (found.value, found.low, found.high) == pytest.approx((0.75, *expected), **EXACT)
    quick, sure = bootstrap(ACCURACY, ROWS, SAID, samples=20_000), bootstrap(by_row, ROWS, SAID, samples=20_000)
    assert (quick.value, quick.low, quick.high) == pytest.approx((sure.value, sure.low, sure.high), **EXACT)


def test_rows_that_are_all_different_are_drawn_one_by_one():
    numbers = np.random.default_rng(0).random(12)
    examples, results = ROWS, [Result(score=float(x)) for x in numbers]

    def rows(examples, results):
        return np.array([[result.score] for result in results])

    summed = bootstrap(SumMetric(rows, lambda sums: sums[..., 0] / 12), examples, results, samples=100)
    selected = bootstrap(RowMetric(rows, lambda rows: rows.mean()), examples, results, samples=100)
    assert (summed.value, summed.low, summed.high) == pytest.approx((selected.value, selected.low, selected.high))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw, covered = np.random.default_rng(0), 0
    for trial in range(150):
        said = [Result(label="a" if hit else "b") for hit in draw.random(150) < 0.7]
        interval = bootstrap(ACCURACY, [Example(text="x", target="a")] * 150, said, samples=200, seed=trial)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.88 <= covered / 150 <= 0.99


def test_a_difference_resamples_the_same_rows_for_both():
    same = bootstrap_difference(ACCURACY, ROWS, SAID, SAID)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    found = bootstrap_difference(ACCURACY, ROWS, SAID, OTHER, samples=500)
    assert found.value == pytest.approx(1 / 12) and found.low <= found.value <= found.high


def test_rows_without_answers_are_left_out_and_all_without_is_an_error():
    rows = [*ROWS, Example(text="x")]
    assert bootstrap(ACCURACY, rows, [*SAID, Result(label="a")]).value == pytest.approx(0.75)
    with pytest.raises(InputError, match="none of the 2 rows has an answer"):
        bootstrap(ACCURACY, [Example(text="x")] * 2, SAID[:2])
