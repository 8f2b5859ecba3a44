"""ReMax: a response as good as the greedy one is neither raised nor lowered."""

import jax.numpy as jnp
import numpy as np

from entrolab.methods import gae, remax

COLUMNS = dict(greedy_rewards=lambda rng: rng.integers(0, 2, 16).astype(np.float32))


def test_equal_to_greedy_gives_nothing():
  mask = jnp.arange(4)[None] < jnp.asarray([[4], [2], [0]])
  rewards = jnp.asarray([1.0, 1.0, 1.0])
  returns = gae.return_to_go(gae.last_token(rewards, mask), mask)
  adv = remax.less_greedy(returns, mask, jnp.asarray([1.0, 0.0, 1.0]))
  np.testing.assert_array_equal(adv, [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
