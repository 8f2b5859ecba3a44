"""KL-Cov: golden parity, and nothing to do with one update a rollout."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate, ranks
from entrolab.methods import grpo, kl_cov, ppo
from entrolab.objective import Objective, Penalty, term
from tests import adapters

# stored log-probs were rounded by another library: on policy the difference is about 1e-16, and
# its sign would be noise
ROUNDING = 1e-12


def recipe(*, fraction, beta, aggregate):
  """KL-Cov; aggregate: a term."""
  return Objective(
      surrogate=term(ppo.plain_ratio), advantage=term(grpo.group_advantage, size=2),
      penalties=(Penalty(beta, term(kl_cov.distance, tolerance=ROUNDING),
                         weight=term(kl_cov.top_mask, fraction=fraction)),), aggregate=aggregate)


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  columns = {**case.columns(), **case.live(logits)}
  case.compare("logprobs", columns["logp"], where=mask)
  case.compare("cov", kl_cov.covariance(columns["logp"], columns["adv"], mask))
  chosen = kl_cov.top_mask(columns["logp"], columns["adv"], mask, columns["noise"],
                           fraction=config["kl_cov_ratio"])
  case.compare("selected_mask", chosen)
  case.compare("k", chosen.sum())
  gap = jnp.abs(columns["logp"] - columns["old_logp"])
  case.compare("ppo_kl_abs", ranks.masked_mean(gap, mask))
  objective = recipe(fraction=config["kl_cov_ratio"], beta=config["ppo_kl_coef"],
                     aggregate=adapters.aggregation(config, "loss_agg_mode",
                                                    width=mask.shape[1]))
  loss, grad = adapters.loss_and_grad(objective, case, logits)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def test_on_policy_it_is_the_plain_policy_gradient():
  """One update a rollout: the gradient equals that of beta = 0 (kl_cov claim b)."""
  rng = np.random.default_rng(1)
  logp = jnp.asarray(-rng.exponential(size=(4, 8)), jnp.float32)
  columns = dict(old_logp=logp, adv=jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
                 mask=jnp.ones((4, 8), bool), noise=jnp.zeros((4, 8)),
                 rewards=jnp.zeros(4), entropy=jnp.zeros((4, 8)))
  def grad(beta):
    objective = recipe(fraction=0.2, beta=beta, aggregate=term(aggregate.token_mean))
    return jax.grad(lambda x: objective.loss({**columns, "logp": x})[0])(logp)

  np.testing.assert_array_equal(grad(1.0), grad(0.0))
