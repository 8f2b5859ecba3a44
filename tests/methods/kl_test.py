"""KL: straight-through estimators, expected gradients, the adaptive coefficient."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.methods import kl

COLUMNS = dict(kl_coef=lambda rng: np.float32(0.1))


def test_plus_forms_have_the_gradient_of_k2_and_their_own_value():
  rng = np.random.default_rng(0)
  logp, ref = (jnp.asarray(-rng.exponential(size=(4, 8)), jnp.float32) for _ in range(2))
  grad = lambda fn: jax.grad(lambda x: fn(x, ref).sum())(logp)
  for plus, plain in ((kl.k1_plus, kl.k1), (kl.k3_plus, kl.k3)):
    np.testing.assert_allclose(grad(plus), grad(kl.k2), atol=1e-7)
    np.testing.assert_allclose(plus(logp, ref), plain(logp, ref), atol=1e-6)


def test_only_k2_has_the_gradient_of_the_kl_in_expectation():
  """All 6 actions weighed by their probability, held fixed: the expectation on policy."""
  rng = np.random.default_rng(1)
  z, ref = (jnp.asarray(rng.normal(size=(1, 6)), jnp.float32) for _ in range(2))
  p, log_ref = jax.nn.softmax(z), jax.nn.log_softmax(ref)
  want = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - log_ref)).sum())(z)
  grad = lambda fn: jax.grad(lambda z: (p * fn(jax.nn.log_softmax(z), log_ref)).sum())(z)
  np.testing.assert_allclose(grad(kl.k2), want, atol=1e-6)
  np.testing.assert_allclose(grad(kl.k1), jnp.zeros_like(z), atol=1e-6)
  assert np.abs(grad(kl.k3) - want).max() > 0.05


def test_the_coefficient_finds_the_kl_it_aims_at():
  """KL falls with the coefficient as 0.02 / coef: the controller settles where KL = target."""
  control = kl.Adaptive(0.1, start=2.0, rows=64, horizon=640.0)
  state = control.init()
  for _ in range(400):
    state = control.update(state, {"term/kl.k3": 0.02 / state["kl_coef"]})
  assert abs(float(state["kl_coef"]) - 0.2) < 0.01
