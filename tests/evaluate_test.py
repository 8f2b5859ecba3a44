"""Estimators against enumeration."""

import itertools

import numpy as np
import pytest

from entrolab.trainer import evaluate


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right, k):
  row = np.arange(6) < right
  want = np.mean([any(row[list(s)]) for s in itertools.combinations(range(6), k)])
  assert evaluate.pass_at_k(row[None], k)[0] == pytest.approx(want, abs=1e-12)


def test_pass_at_k_refuses_more_than_there_are():
  with pytest.raises(ValueError, match="pass@8 of 4 samples"):
    evaluate.pass_at_k(np.ones((1, 4), bool), 8)


@pytest.mark.parametrize("keys, right, want", [
    (["a", "a", "b"], [True, True, False], 1.0),
    (["a", "b", "b"], [True, False, False], 0.0),
    (["a", "b"], [True, False], 0.5),  # a tie is shared
    ([None, None, "b"], [False, False, True], 1.0),  # silence has no vote
    ([None], [False], 0.0),
])
def test_majority(keys, right, want):
  assert evaluate.majority_right(keys, right) == want


def test_intervals_cover():
  rng, hits = np.random.default_rng(0), 0
  for _ in range(400):
    _, low, high = evaluate.interval(rng.binomial(16, 0.4, 100) / 16)
    hits += low <= 0.4 <= high
  assert 0.92 < hits / 400 < 0.98
