"""Intervals: proper for shares, clustered by question, paired; by formula and by simulation."""

import numpy as np
import pytest

from entrolab.trainer import evaluate, intervals, log
from entrolab.trainer.intervals import change, interval


@pytest.mark.parametrize("right, count, low, high", [
    # Wilson's interval by its formula: https://www.itl.nist.gov section 7.2.4.1
    (1, 8, 0.0224, 0.4709), (0, 8, 0.0, 0.3244), (8, 8, 0.6756, 1.0), (0, 1, 0.0, 0.7935),
    (81, 263, 0.2553, 0.3662)])
def test_of_results_of_different_questions_it_is_wilsons(right, count, low, high):
  values = np.arange(count) < right
  found = interval(values.astype(float))
  assert found == pytest.approx((right / count, low, high), abs=5e-5)


def test_a_repeated_question_is_no_further_evidence():
  values = np.asarray([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
  names = [f"q{at}" for at in range(8)]
  once = interval(values, names)
  four = interval(np.tile(values, 4), names * 4)
  apart = interval(np.tile(values, 4), [f"{name}{copy}" for copy in range(4) for name in names])
  width = lambda found: found[2] - found[1]
  assert four[0] == once[0] and width(four) == pytest.approx(width(once), rel=0.08)
  assert width(apart) < 0.6 * width(once)
  single = interval(np.ones(64), ["q"] * 64)
  assert single == interval(np.ones(1)) and single[1] < 0.25


def test_it_stays_in_its_range_and_holds_its_mean():
  rng = np.random.default_rng(0)
  for _ in range(300):
    count = int(rng.integers(1, 12))
    values = rng.binomial(4, rng.choice([0.0, 0.02, 0.5, 1.0]), count) / 4
    names = rng.integers(0, 4, count).tolist()
    for questions in (None, names):
      mean, low, high = interval(values, questions)
      assert 0.0 <= low <= mean <= high <= 1.0 and high - low > 0.01
      other = rng.binomial(4, 0.4, count) / 4
      found, low, high = change(values, other, questions)
      assert -1.0 <= low <= found <= high <= 1.0


def covered(draw, count=500):
  """Share of samples whose interval holds the truth."""
  rng, hits = np.random.default_rng(1), 0
  for _ in range(count):
    truth, (_, low, high) = draw(rng)
    hits += low <= truth <= high
  return hits / count


def test_intervals_of_shares_and_of_clusters_cover():
  def shares(rng):  # questions of different difficulty, 8 samples of each
    return 0.3, interval(rng.binomial(8, rng.beta(0.6, 1.4, 60)) / 8)

  def clustered(rng):  # 25 questions, some of them often
    names = np.repeat(np.arange(25), rng.integers(1, 6, 25))
    return 0.4, interval(rng.binomial(1, rng.beta(0.8, 1.2, 25)[names]).astype(float),
                         names.tolist())

  def counts(rng):
    return 2.4, interval(rng.binomial(8, 0.3, 40).astype(float), None, 8.0)

  for draw in (shares, clustered, counts):
    assert 0.90 < covered(draw) < 0.985, draw.__name__


def test_changes_cover_and_pairing_narrows_them():
  widths = []

  def paired(rng):
    difficulty = rng.beta(0.6, 1.4, 80)
    before = rng.binomial(16, difficulty) / 16
    after = rng.binomial(16, 0.8 * difficulty + 0.2) / 16
    found = change(before, after)
    of_one = [high - low for _, low, high in map(interval, (before, after))]
    widths.append((found[2] - found[1]) / np.hypot(*of_one))  # over that of other problems
    return 0.14, found  # 0.2 (1 - 0.3)

  assert 0.90 < covered(paired) < 0.985
  assert np.mean(widths) < 0.6


def test_what_is_unknown_is_left_out():
  values = np.asarray([1.0, np.nan, 0.0, 0.0])
  assert interval(values) == interval(np.asarray([1.0, 0.0, 0.0]))
  assert np.isnan(interval(np.full(3, np.nan))).all()
  assert change(values, values[::-1]) == change(values[[0, 3]], values[[3, 0]])


def test_no_change_is_none():
  values = np.asarray([0.0, 1.0, 0.5, 0.25] * 8)
  found, low, high = change(values, values)
  assert found == 0.0 and -0.05 < low <= 0.0 <= high < 0.05
  assert intervals.effective(np.full(5, 0.5), range(5)) == 5.0


def test_an_evaluation_reports_its_change_with_an_interval():
  before = {"pass@1": [0.25, 0.5, 0.0, 1.0], "distinct": [1.0, 2.0, 0.0, 3.0]}
  after = {name: np.asarray(x) + 0.125 * (name != "distinct") for name, x in before.items()}
  after["pass@1"] = np.minimum(after["pass@1"], 1.0)
  found = evaluate.changes(before, after, 8)
  assert found["eval/pass@1_change"] == pytest.approx(0.09375)
  assert found["eval/pass@1_change_low"] < 0.09375 < found["eval/pass@1_change_high"]
  assert found["eval/distinct_change"] == 0.0 and len(found) == 6
  ends = {"": 0.5, "_low": 0.4, "_high": 0.6}
  rows = {f"eval/{n}{end}": x for n in ("pass@1", "greedy", "distinct") for end, x in ends.items()}
  rows |= {"eval/entropy": 0.3}
  text = log.verdict(rows, {**rows, **found}, (1,))
  assert "0.500 [0.400, 0.600] -> 0.500 [0.400, 0.600], paired +0.094 [" in text
  assert text.count("paired") == 1 and "paired" not in log.verdict(rows, rows, (1,))
