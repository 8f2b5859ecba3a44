"""GAE: against the sums of its definition, and gaps that belong to a tool."""

import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.methods import gae

B, T = 16, 12
COLUMNS = {name: lambda rng: rng.normal(size=(B, T)).astype(np.float32)
           for name in ("value", "old_value", "target")}


def batch(seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(T) < rng.integers(0, T + 1, B)[:, None]
  return rng, mask, rng.normal(size=(B, T)), rng.normal(size=(B, T))


def test_advantage_is_the_discounted_sum_of_residuals():
  _, mask, r, v = batch()
  gamma, lam = 0.9, 0.7
  got = np.asarray(gae.generalised(*map(jnp.asarray, (r, v, mask)), gamma=gamma, lam=lam))
  for b in range(B):
    n = int(mask[b].sum())
    after = np.append(v[b, 1:n], 0.0)[:n]
    delta = r[b, :n] + gamma * after - v[b, :n]
    want = [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
    np.testing.assert_allclose(got[b, :n], want, atol=1e-5)
    assert (got[b, n:] == 0.0).all()


def test_limits_of_lambda():
  """lambda 1: the return less the value; lambda 0: the one-step residual."""
  _, mask, r, v = batch(1)
  args = [jnp.asarray(x) for x in (r, v, mask)]
  ones = gae.generalised(*args, gamma=0.9)
  back = gae.return_to_go(args[0], args[2], gamma=0.9)
  np.testing.assert_allclose(ones, jnp.where(mask, back - args[1], 0.0), atol=1e-5)
  nothing = gae.generalised(args[0], jnp.zeros((B, T)), args[2], gamma=0.9)
  np.testing.assert_allclose(nothing, back, atol=1e-6)


def test_a_gap_is_skipped_or_ends_the_return():
  mask = jnp.asarray([[True, True, False, False, True, True]])
  rewards = gae.last_token(jnp.asarray([1.0]), mask)
  np.testing.assert_array_equal(rewards, [[0, 0, 0, 0, 0, 1.0]])
  carry = gae.return_to_go(rewards, mask, gamma=0.5)
  np.testing.assert_allclose(carry, [[0.125, 0.25, 0, 0, 0.5, 1.0]])
  reset = gae.return_to_go(rewards, mask, gamma=0.5, gap="reset")
  np.testing.assert_allclose(reset, [[0, 0, 0, 0, 0.5, 1.0]])
  with pytest.raises(ValueError, match="'carry', 'reset'"):
    gae.return_to_go(rewards, mask, gap="skip")
