"""Draws: frequencies, truncation without sorting, and the statistics beside the token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.rollout import draw


def truncated(logits, top_p, top_k):
  """Sorted, in float64: (tokens in descending order, lowest index first among equals; how many of
  them are kept; the mass before each)."""
  order = np.argsort(-logits.astype(np.float64), kind="stable")
  order = order[:top_k] if top_k > 0 else order
  p = np.exp(logits[order].astype(np.float64) - logits.max())
  before = np.append(0.0, np.cumsum(p) / p.sum())
  count = int((before[:-1] < top_p - 1e-12).sum()) if top_p < 1.0 else len(order)
  return order, max(count, 1), before


@pytest.mark.parametrize("size", [7, 120, 512, 1009])
def test_truncation_equals_the_sorted_one(size):
  rng = np.random.default_rng(size)
  logits = rng.normal(size=(64, size)) * np.geomspace(0.05, 8.0, 64)[:, None]
  logits[::3] = np.round(logits[::3] * 2) / 2  # ties
  logits = logits.astype(np.float32)
  top_p = np.resize(np.asarray([1.0, 0.3, 0.77, 0.93], np.float32), 64)
  top_k = np.resize(np.asarray([0, 1, 5, 40, 2000], np.int32), 64)
  got = np.asarray(draw.support(jnp.asarray(logits), jnp.asarray(top_p), jnp.asarray(top_k)))
  for row in range(64):
    order, want, before = truncated(logits[row], float(top_p[row]), int(top_k[row]))
    count = int(got[row].sum())
    assert set(np.flatnonzero(got[row])) == set(order[:count]), row
    if count != want:  # float32 cannot tell on which side of top_p the mass is
      assert abs(count - want) == 1 and abs(before[min(count, want)] - top_p[row]) < 1e-6, row


@pytest.mark.parametrize("size", [1, 2, 97, 512, 4096])
def test_the_inverse_of_the_cumulative_weight(size):
  rng = np.random.default_rng(0)
  weight = (rng.random((16, size)) * (rng.random((16, size)) < 0.7)).astype(np.float32)
  weight[:, size // 2] += 0.1
  u = rng.random(16).astype(np.float32)
  token, total = draw.inverse_cdf(jnp.asarray(weight), jnp.asarray(u))
  np.testing.assert_allclose(total, weight.sum(-1), rtol=1e-5)
  cumulative = np.cumsum(weight.astype(np.float64), -1)
  for row, at in enumerate(np.asarray(token)):
    low, high = cumulative[row, at] - weight[row, at], cumulative[row, at]
    target = u[row] * cumulative[row, -1]
    assert weight[row, at] > 0 and low - 1e-4 <= target <= high + 1e-4


def test_frequencies_and_statistics():
  logits = jnp.asarray([[0.0, 1.0, 2.0, -jnp.inf, 0.5]])
  rows, n = jnp.repeat(logits, 4000, 0), 4000
  u = jnp.asarray((np.arange(n) + 0.5) / n, jnp.float32)
  ones, none = jnp.ones(n), jnp.zeros(n, jnp.int32)
  got = draw.draw(rows, u, ones, ones, none)
  p = np.asarray(jax.nn.softmax(logits))[0]
  np.testing.assert_allclose(np.bincount(got.token, minlength=5) / n, p, atol=1e-3)
  np.testing.assert_allclose(got.logp, np.log(p[np.asarray(got.token)]), rtol=1e-5, atol=1e-6)
  entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
  np.testing.assert_allclose(got.entropy, np.full(n, entropy), rtol=1e-5)
  np.testing.assert_array_equal(got.logp, got.sampled_logp)
  hot = draw.draw(rows, u, ones * 2.0, ones, none)
  q = np.asarray(jax.nn.softmax(logits / 2.0))[0]
  np.testing.assert_allclose(np.bincount(hot.token, minlength=5) / n, q, atol=1e-3)
  np.testing.assert_allclose(hot.logp, np.log(p[np.asarray(hot.token)]), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(hot.sampled_logp, np.log(q[np.asarray(hot.token)]), rtol=1e-5,
                             atol=1e-6)
  greedy = draw.draw(rows, u, ones * 0.0, ones, none)
  assert (np.asarray(greedy.token) == 2).all() and (np.asarray(greedy.sampled_logp) == 0.0).all()


def test_a_row_draws_the_same_beside_rows_of_other_settings():
  rng = np.random.default_rng(1)
  logits = jnp.asarray(rng.normal(size=(64, 512)) * 3.0, jnp.float32)
  u, ones, none = jnp.asarray(rng.random(64), jnp.float32), jnp.ones(64), jnp.zeros(64, jnp.int32)
  alone = draw.draw(logits, u, ones, ones, none)
  mixed = draw.draw(logits, u, ones.at[0].set(0.7), ones.at[1].set(0.5), none.at[2].set(3))
  np.testing.assert_array_equal(alone.token[3:], mixed.token[3:])
  np.testing.assert_array_equal(alone.logp[3:], mixed.logp[3:])


def test_more_than_the_finite_logits_are_requested():
  logits = np.full((3, 50), -np.inf, np.float32)
  logits[:, 40:43] = [0.5, 2.0, -1.0]
  got = draw.support(jnp.asarray(logits), jnp.asarray([1.0, 1.0, 0.5]), jnp.asarray([7, 2, 0]))
  kept = [set(np.flatnonzero(np.isfinite(z) & on).tolist())
          for z, on in zip(logits, np.asarray(got), strict=True)]
  assert kept == [{40, 41, 42}, {40, 41}, {41}]


def test_top_k_of_logits_that_crowd():
  size = 2000
  rows = [-np.geomspace(1e-30, 1e30, size), np.geomspace(2e-38, 3e38, size),
          (np.arange(size, dtype=np.int32) + np.float32(-7.0).view(np.int32)).view(np.float32)]
  logits = np.random.default_rng(0).permuted(np.asarray(rows, np.float32), axis=1)
  support = jax.jit(draw.support)
  for k in (1, 77, 1999):
    got = np.asarray(support(jnp.asarray(logits), jnp.ones(3), jnp.full(3, k, jnp.int32)))
    order = np.argsort(-logits, axis=1, kind="stable")
    assert np.take_along_axis(got, order, 1)[:, :k].all() and (got.sum(1) == k).all()


def test_the_largest_floats_are_searched_too():
  """All but the maximum have the exponential 0, so that they are searched among themselves, up to
  the end of the floats."""
  top = np.float32(np.finfo(np.float32).max).view(np.int32)
  logits = np.random.default_rng(0).permutation(top - np.arange(300, dtype=np.int32))
  logits = logits.view(np.float32)[None]
  on = np.asarray(draw.support(jnp.asarray(logits), jnp.ones(1), jnp.asarray([5], jnp.int32)))[0]
  assert set(logits[0][on]) == set(np.sort(logits[0])[-5:])
