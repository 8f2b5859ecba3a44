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


def test_a_level_out_of_range_is_refused():
  with pytest.raises(ValueError, match=r"level=0.0"):
    qae.quantile_advantage(group(3), size=8, level=0.0)
