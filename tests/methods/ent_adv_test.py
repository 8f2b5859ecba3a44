"""Entropy-shaped advantage: golden parity, signs and bounds."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.methods import ent_adv, ppo
from entrolab.objective import Objective, term
from tests import adapters


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  live = case.live(logits)
  case.compare("entropy", live["entropy"], where=mask)
  knobs = dict(alpha=config["alpha"], kappa=config["kappa"])
  case.compare("psi", ent_adv.psi(case["advantages"], live["entropy"], **knobs), where=mask)
  adv = ent_adv.shaped(case["advantages"], live["entropy"], **knobs)
  case.compare("shaped_advantages", jnp.where(mask, adv, 0.0))
  objective = Objective(
      advantage=term(ent_adv.shaped, **knobs),
      surrogate=term(ppo.clipped_ratio, low=config["clip_ratio_low"],
                     high=config["clip_ratio_high"], dual=config["clip_ratio_c"]))
  loss, grad = adapters.loss_and_grad(objective, case, logits)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def test_the_sign_stays_and_the_bonus_is_bounded():
  """Claims a and b; a zero advantage gets nothing."""
  rng = np.random.default_rng(0)
  adv = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32).at[0].set(0.0)
  entropy = jnp.asarray(rng.gamma(2.0, size=(8, 16)), jnp.float32)
  out = ent_adv.shaped(adv, entropy)
  assert (jnp.sign(out) == jnp.sign(adv)).all()
  assert (out - adv >= 0.0).all() and (out - adv <= jnp.abs(adv) / 2.0 + 1e-6).all()
  assert ((out - adv)[1:] > 0.0).all() and (out[0] == 0.0).all()


def test_no_gradient_reaches_the_entropy():
  """Claim c: the gradient is the policy gradient with the shaped advantage frozen."""
  rng = np.random.default_rng(1)
  z = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, 5, (3, 4)))
  own = jax.nn.log_softmax(z)
  columns = dict(mask=jnp.ones((3, 4), bool), adv=jnp.asarray(rng.normal(size=(3, 4)), jnp.float32))
  objective = Objective(surrogate=term(ppo.reinforce), advantage=term(ent_adv.shaped))

  def live(z):
    lp = jax.nn.log_softmax(z)
    return dict(logp=jnp.take_along_axis(lp, tokens[..., None], -1)[..., 0],
                entropy=-(jnp.exp(lp) * lp).sum(-1))

  got = jax.grad(lambda z: objective.loss({**columns, **live(z)})[0])(z)
  frozen = ent_adv.shaped(columns["adv"], live(z)["entropy"])
  onehot = jax.nn.one_hot(tokens, 5)
  want = -(frozen[..., None] * (onehot - jnp.exp(own))) / 12.0
  np.testing.assert_allclose(got, want, atol=1e-6)
