"""SPINE: golden parity, and which way its band pushes."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate
from entrolab.methods import grpo, kl, ppo, spine
from entrolab.objective import Objective, Penalty, term
from tests import adapters


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  groups = len(np.unique(case.raw("group_ids")))
  config.expect(
      P=groups, G=len(mask) // groups, T=mask.shape[1], V=logits.shape[2], std_ddof=1,
      agg="sum over forking tokens of the batch / number of forking tokens", quantile="linear",
      k_rule="max(1,ceil(rho*n))", hinge="relu with zero gradient at 0",
      thresholds="per response over its forking tokens, stop-gradient, current policy")
  live = case.live(logits)
  noise = jnp.zeros(mask.shape)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  case.compare("ratio", ppo.ratio(live["logp"], case["old_logprobs"]), where=mask)
  rewards = case["rewards"]
  adv = adapters.per_group(case, grpo.group_advantage, rewards, eps=config["adv_eps"])
  case.compare("advantages", adv)
  fork = term(spine.fork_mask, fraction=config["rho"], scope=config["scope"])
  chosen = fork({**live, "mask": mask, "noise": noise}) > 0
  case.compare("fork_mask", chosen)
  bounds = {name: spine.ranks.quantile(live["entropy"], chosen, config[f"q_{name}"], rows=True)
            for name in ("low", "high")}
  for name, bound in bounds.items():
    case.compare(f"h_{name}", bound[:, 0])
  at = [chosen & (live["entropy"] == bound) for bound in bounds.values()]
  case.compare("kink_mask", at[0] | at[1])
  over, under = spine.band(live["entropy"], chosen, low=config["q_low"], high=config["q_high"])
  case.compare("band_high", over)
  case.compare("band_low", under)
  # the band of a choice over the whole batch is a function of that choice, not of a row
  def outside(entropy, chosen):
    over, under = spine.band(entropy, chosen, low=config["q_low"], high=config["q_high"])
    return config["w_high"] * over + config["w_low"] * under

  def total(z):
    now = case.live(z)
    columns = {**case.columns(adv=jnp.where(mask, adv[:, None], 0.0)), **now}
    objective = Objective(
        surrogate=term(ppo.clipped_ratio, low=config["clip"], high=config["clip"]),
        weights=(fork,), aggregate=term(aggregate.selected_mean),
        penalties=(Penalty(config["kl_coef"], term(kl.k3, cap=float("inf")), weight=fork),))
    loss, metrics = objective.loss(columns)
    outer = jnp.where(chosen, outside(now["entropy"], chosen), 0.0).sum()
    mean = outer / chosen.sum().astype(float)
    return loss + mean, {**metrics, "band": mean}

  (loss, metrics), grad = jax.value_and_grad(total, has_aux=True)(logits)
  case.compare("loss", loss)
  case.compare("pg_loss", metrics["term/ppo.clipped_ratio"])
  case.compare("kl_loss", metrics["term/kl.k3"])
  case.compare("band_loss", metrics["band"])
  case.compare("grad_logits", grad)
  if config["scope"] == "sequence":
    knobs = dict(fraction=config["rho"], low=config["q_low"], high=config["q_high"],
                 above=config["w_high"], under=config["w_low"])
    ours = spine.band_penalty(live["entropy"], mask, noise, **knobs)
    np.testing.assert_allclose(ours, outside(live["entropy"], chosen), atol=1e-12)


def test_every_row_with_a_token_has_a_fork():
  rng = np.random.default_rng(0)
  mask = jnp.asarray(np.arange(30) < np.asarray([0, 1, 4, 5, 6, 30])[:, None])
  entropy = jnp.asarray(rng.random((6, 30)), jnp.float32)
  got = spine.fork_mask(entropy, mask, jnp.zeros_like(entropy))
  np.testing.assert_array_equal(got.sum(1), [0, 1, 1, 1, 2, 6])
  kept, left = (np.where(on, entropy, s) for on, s in ((got > 0, 9.0), (mask & (got == 0), -9.0)))
  assert (kept.min(1) > left.max(1)).all()


def test_with_equal_weights_the_band_lowers_the_entropy_of_forks():
  """It follows the policy: about half of the forks lie above, a tenth below."""
  rng = np.random.default_rng(1)
  entropy = jnp.asarray(rng.gamma(2.0, 0.5, (64, 200)), jnp.float32)
  mask, noise = jnp.ones((64, 200), bool), jnp.zeros((64, 200))
  push = jax.grad(lambda h: spine.band_penalty(h, mask, noise).sum())(entropy)
  down, up = (np.asarray(s * push > 0).sum() for s in (1, -1))
  forks = 64 * 40
  assert 0.45 < down / forks < 0.55 and 0.05 < up / forks < 0.15


def test_the_ceiling_forgives_a_share_of_the_count_and_no_more():
  """0.2 x 5 k tokens are k, at any k; a fraction a little above takes one more."""
  for kind in (jnp.float32, jnp.float64):
    with adapters.double():
      count = lambda n, fraction, kind=kind: int(spine._count(jnp.asarray(n, kind), fraction))
      for k in (1, 3, 7, 1000, 30_001, 200_001):
        assert count(5 * k, 0.2) == k and count(10 * k, 0.7) == 7 * k
      assert count(15, 0.200003) == 4 and count(0, 0.2) == 0 and count(1, 0.01) == 1
