"""Values: scale, loss, answers, correlations."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from terrazzo.data.tokenizer import train_tokenizer
from terrazzo.errors import InputError
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example, Result
from terrazzo.tasks.batches import collate
from terrazzo.tasks.metrics import bootstrap
from terrazzo.tasks.regression import RegressionTask
from terrazzo.testing import tiny_texts

TEXTS = tiny_texts(30)
ROWS = [Example(text=text, target=10.0 + i) for i, text in enumerate(TEXTS)]
VALUES = np.array([row.target for row in ROWS])


def test_targets_are_learned_in_units_of_their_deviation():
    task = RegressionTask.learn(ROWS)
    assert (task.mean, task.std) == pytest.approx((VALUES.mean(), VALUES.std())) and not task.pair
    batch = Packed(tokens_T=torch.zeros(30, dtype=torch.int64), lengths=(1,) * 30, labels_B=torch.tensor(VALUES))
    ignorant = task.loss(torch.zeros(30, 1), batch, SupervisedConfig())
    assert ignorant.weight == 30 and ignorant.sum.item() == pytest.approx(30, rel=1e-5)
    right = torch.tensor((VALUES - VALUES.mean()) / VALUES.std())[:, None]
    assert task.loss(right, batch, SupervisedConfig()).sum.item() == pytest.approx(0, abs=1e-6)


def test_answers_are_in_the_rows_own_units():
    task = RegressionTask.learn(ROWS)
    tokenizer = train_tokenizer(lambda: TEXTS, "wordpiece", 128, shrink=True)
    documents = task.encode_many(ROWS[:1], tokenizer, 16)[0]
    assert documents[0].label == np.float32(10.0)
    result = task.decode(ROWS[0], documents, [np.array([2.0], dtype=np.float32)])
    assert result.score == pytest.approx(VALUES.mean() + 2 * VALUES.std()) and result.truncated > 0


def test_values_far_from_zero_are_told_apart():
    values = [1.7e9 + i for i in range(30)]
    rows = [Example(text=text, target=value) for text, value in zip(TEXTS, values, strict=True)]
    task = RegressionTask.learn(rows)
    tokenizer = train_tokenizer(lambda: TEXTS, "wordpiece", 128, shrink=True)
    batch = collate([documents[0] for documents in task.encode_many(rows, tokenizer, 16)])
    wanted = (np.array(values) - np.mean(values)) / np.std(values)
    right = torch.tensor(wanted, dtype=torch.float32)[:, None]
    assert task.loss(right, batch, SupervisedConfig()).sum.item() == pytest.approx(0, abs=1e-6)


def test_values_without_a_deviation_are_refused():
    for values, message in (((2.0, 2.0), "all 2 rows have the value 2"), ((1e300, -1e300), "the value 1e\\+300")):
        with pytest.raises(InputError, match=message):
            RegressionTask.learn([Example(text="a", target=value) for value in values])


@pytest.mark.parametrize("metric", ["spearman", "pearson"])
def test_scores_are_scipys(metric):
    task = RegressionTask.learn(ROWS, metric=metric)
    said = VALUES + np.random.default_rng(0).normal(size=30).round() * 5
    results = [Result(score=float(value)) for value in said]
    found = task.score(ROWS, results)
    assert found.values["spearman"] == pytest.approx(stats.spearmanr(VALUES, said).statistic, abs=1e-12)
    assert found.values["pearson"] == pytest.approx(stats.pearsonr(VALUES, said).statistic, abs=1e-12)
    assert found.values["rmse"] == pytest.approx(np.sqrt(((VALUES - said) ** 2).mean()))
    interval = bootstrap(task.main_metric(), ROWS, results, samples=100)
    assert interval.value == found.value and interval.low < interval.value < interval.high
    mean = [*results[:-1], Result(score=task.mean)]
    assert task.score(ROWS, [*results[:-1], Result(error="no text")]) == task.score(ROWS, mean)


def test_the_same_value_for_all_tells_nothing():
    task = RegressionTask.learn(ROWS)
    assert task.score(ROWS, [Result(score=1.0)] * 30).value == 0.0


def test_what_is_no_number_is_refused():
    with pytest.raises(InputError, match="f:1: the answer 'good' is not a number"):
        RegressionTask.learn([Example(text="a", target="good", where="f:1")])
    with pytest.raises(InputError, match="all 2 rows have the value 1"):
        RegressionTask.learn([Example(text="a", target=1.0)] * 2)
    outputs, batch = torch.zeros(1, 1), Packed(tokens_T=torch.zeros(1).long(), lengths=(1,), labels_B=torch.zeros(1))
    with pytest.raises(InputError, match="for classes"):
        RegressionTask().loss(outputs, batch, SupervisedConfig(focal_gamma=1.0))


def test_pairs_are_learned_from_rows():
    assert RegressionTask.learn([dataclasses.replace(row, other="a") for row in ROWS]).pair
