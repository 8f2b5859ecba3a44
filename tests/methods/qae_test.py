"""QAE: its two regimes, and how few responses it moves."""

import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.methods import grpo, qae


def group(right, size=8):
  return jnp.asarray(np.arange(size) < right, jnp.float32)


@pytest.mark.parametrize("right", range(9))
def test_two_regimes(right):
  """p <= 1 - K: only right answers move; p > 1 - K: only wrong ones do."""
  adv = np.asarray(qae.quantile_advantage(group(right), size=8, level=0.4))
  if right in (0, 8):
    assert (adv == 0.0).all()
  elif right / 8 <= 0.6:
    assert (adv[:right] > 0.0).all() and (adv[right:] == 0.0).all()
  else:
    assert (adv[:right] == 0.0).all() and (adv[right:] < 0.0).all()


def test_most_responses_have_no_advantage():
  """On a mix of difficulties far fewer responses move than under the mean baseline."""
  rng = np.random.default_rng(0)
  right = rng.random((500, 8)) < rng.random((500, 1))
  rewards = jnp.asarray(right.reshape(-1), jnp.float32)
  moved = lambda adv: float((adv != 0.0).mean(dtype=jnp.float32))
  assert moved(qae.quantile_advantage(rewards, size=8)) < 0.4
  assert moved(grpo.group_advantage(rewards, size=8)) > 0.7


@pytest.mark.parametrize("level", [0.1, 0.25, 0.4, 0.5, 0.8, 1.0])
def test_the_baseline_is_the_inverse_of_the_groups_distribution(level):
  """numpy's inverted_cdf is the same definition, for rewards of any kind, ties included."""
  rewards = np.random.default_rng(1).integers(0, 5, 320).astype(np.float32) / 4.0
  for size in (4, 5, 8, 10):
    got = qae.quantile_baseline(jnp.asarray(rewards), size=size, level=level)
    want = np.quantile(rewards.reshape(-1, size), level, axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(got[:, 0], want)


def test_a_level_out_of_range_is_refused():
  with pytest.raises(ValueError, match=r"level=0.0"):
    qae.quantile_advantage(group(3), size=8, level=0.0)


def test_the_rank_of_the_quantile_forgives_rounding_alone():
  """0.7 x 10 is the 7th smallest; a level that is really above takes the next."""
  rewards = jnp.arange(10.0)
  at = lambda level: float(qae.quantile_baseline(rewards, size=10, level=level)[0, 0])
  assert [at(0.1), at(0.3), at(0.7), at(0.7 + 1e-8), at(1.0)] == [0.0, 2.0, 6.0, 7.0, 9.0]
