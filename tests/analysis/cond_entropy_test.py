"""Conditional entropy: golden parity, and a chain whose steps reveal the answer bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import vocab
from entrolab.analysis import cond_entropy


def golden(case):
  logits, steps = case["answer_logits"], case["n_steps"]
  chains, prefixes, tokens, entries = logits.shape
  case.config.expect(
      C=chains, K=prefixes - 1, M=tokens, V=entries, units="nats", span="mean over answer tokens",
      slope="least squares over step index 0..K_c", cubic="not-a-knot when K_c>=3 else linear")
  answer = jnp.arange(logits.shape[2])[None] < case["answer_len"][:, None]
  entropy = cond_entropy.token_entropy(logits)
  case.compare("token_entropy", entropy)
  path = cond_entropy.trajectory(entropy, answer, steps)
  case.compare("trajectory", path)
  tokens = jnp.broadcast_to(case["answer_tokens"][:, None], logits.shape[:3])
  logp = vocab.from_logits(logits, tokens, vocab.Spec(names=("logp",)))["logp"]
  case.compare("cross_entropy", cond_entropy.trajectory(-logp, answer, steps))
  case.compare("info_gain", cond_entropy.information_gain(path, steps))
  case.compare("total_reduction", cond_entropy.total_reduction(path, steps))
  case.compare("slope", cond_entropy.slope(path, steps))
  case.compare("frac_decreasing", cond_entropy.falling_share(path, steps))
  grid = case.raw("grid")
  chains = [np.asarray(p)[:int(n) + 1] for p, n in zip(path, steps, strict=True)]
  for cubic in (False, True):
    case.compare("aligned_cubic" if cubic else "aligned_linear",
                 np.stack([cond_entropy.aligned(p, grid, cubic=cubic) for p in chains]))


def test_steps_that_halve_the_candidates_gain_one_bit_each():
  logits = jnp.stack([jnp.where(jnp.arange(8) < 8 >> k, 0.0, -1e9) for k in range(4)])
  entropy = cond_entropy.token_entropy(logits[None, :, None])
  steps, answer = jnp.asarray([3]), jnp.ones((1, 1), bool)
  path = cond_entropy.trajectory(entropy, answer, steps)
  np.testing.assert_allclose(cond_entropy.information_gain(path, steps), np.log(2.0), atol=1e-6)
  assert float(cond_entropy.falling_share(path, steps)[0]) == 1.0
  assert float(cond_entropy.slope(path, steps)[0]) == pytest.approx(-np.log(2.0), abs=1e-6)


def test_a_chain_without_steps_has_no_slope_and_no_falling_step():
  path, steps = jnp.asarray([[1.3, 0, 0], [1.0, 0.6, 0.2], [1.0, 0.7, 0]]), jnp.asarray([0, 2, 1])
  for fn, want in ((cond_entropy.slope, [0, -0.4, -0.3]), (cond_entropy.falling_share, [0, 1, 1])):
    np.testing.assert_allclose(fn(path, steps), want, atol=1e-6)
    grad = np.asarray(jax.grad(lambda x, fn=fn: fn(x, steps).sum())(path))
    assert np.isfinite(grad).all() and (grad[0] == 0.0).all()
    assert fn(path[:0], steps[:0]).shape == (0,)
  np.testing.assert_array_equal(cond_entropy.total_reduction(path, steps)[0], 0.0)
  empty = cond_entropy.trajectory(jnp.ones((1, 3, 2)), jnp.zeros((1, 2), bool), jnp.asarray([2]))
  assert (np.asarray(empty) == 0.0).all()


def test_a_spline_reproduces_a_cubic_exactly():
  f = lambda x: 1.0 - 2.0 * x + 3.0 * x**2 - 0.5 * x**3
  grid = np.linspace(0, 1, 23)
  got = cond_entropy.aligned(f(np.linspace(0, 1, 6)), grid, cubic=True)
  np.testing.assert_allclose(got, f(grid), atol=1e-12)
