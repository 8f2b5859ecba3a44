"""CANON: golden parity, and the identities of its two comparisons."""

import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.methods import canon, grpo, ppo
from entrolab.objective import Objective, term
from tests import adapters

COLUMNS = dict(intra=lambda rng: np.float32(0.3))


def golden(case):
  if "step" in case:
    steps, config = case["step"], case.config
    spans = dict(total=config["total"], warm=config["warmup"], cycles=config["cycles"])
    case.compare("intra_weight_cosine", canon.cosine_weight(steps, **spans))
    case.compare("intra_weight_cosine_r", canon.cosine_weight(steps, reverse=True, **spans))
    return
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  rewards = case["rewards"]
  entropy = case.live(logits)["entropy"]
  kind = config["metric"]
  config.expect(metric=("entropy", "length", "cosine", "cosine_r", "annel"))
  metric = (jnp.asarray(mask, float).sum(1) if kind == "length"
            else canon.mean_entropy(entropy, mask))
  case.compare("metric_value", metric)
  mu = config["mu"]
  if kind not in ("cosine", "cosine_r"):
    config.ignore("mu follows no schedule", "step")
  else:
    mu = 1.0 - canon.cosine_weight(jnp.asarray(config["step"]), reverse=kind == "cosine_r")
  if kind == "annel":
    mu = rewards.mean()
  plain = kind not in ("entropy", "length")
  alpha, beta = 1.0, 0.0
  if plain:
    config.ignore("a schedule sets mu and compares halves as they are", "mu", "alpha", "beta")
  else:
    alpha, beta = config["alpha"], config["beta"]
  favoured = "lower" if kind == "length" else "upper"
  # the official code divides by the longest response under its default aggregation alone
  divisor = 1.0
  if config["agg"] == "seq-mean-token-sum":
    divisor = config["max_length"]
  else:
    config.ignore("no division under another aggregation", "max_length")
  ids, adv, centred = case.raw("group_id"), np.zeros(len(rewards)), np.zeros(len(rewards))
  for one in np.unique(ids):
    rows = np.flatnonzero(ids == one)
    upper = canon.upper_half(metric[rows], jnp.zeros((len(rows), 1)), size=len(rows))
    adv[rows] = canon.conditional(rewards[rows], upper, mu, size=len(rows), alpha=alpha, beta=beta,
                                  favoured=favoured, divisor=divisor)
    centred[rows] = grpo.centred_advantage(rewards[rows], size=len(rows)) / divisor
  spread = lambda a: jnp.where(mask, jnp.asarray(a)[:, None], 0.0)
  case.compare("advantages", spread(adv))
  case.compare("dr_grpo_advantages", spread(centred))
  objective = Objective(
      surrogate=term(ppo.clipped_ratio, low=config["clip_low"], high=config["clip_high"],
                     dual=config["clip_c"]),
      aggregate=adapters.aggregation(config, width=mask.shape[1]))
  loss, grad = adapters.loss_and_grad(objective, case, logits, adv=spread(adv))
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def batch(groups=40, size=8, seed=0):
  rng = np.random.default_rng(seed)
  rewards = jnp.asarray(rng.integers(0, 2, groups * size), jnp.float32)
  mask = jnp.asarray(np.arange(12) < rng.integers(1, 13, groups * size)[:, None])
  draw = lambda: jnp.asarray(rng.random((groups * size, 12)), jnp.float32)
  return rewards, draw(), mask, draw()


def test_half_of_each_is_dr_grpo():
  rewards, entropy, mask, noise = batch()
  got = canon.by_entropy(rewards, entropy, mask, noise, size=8, mu=0.5)
  np.testing.assert_allclose(got, grpo.centred_advantage(rewards, size=8), atol=1e-6)


def test_between_halves_the_advantage_is_never_smaller_than_dr_grpos():
  """mean |A_inter| = a + b - 2ab; it exceeds mean |A_DrGRPO| by (a - b)^2 / 2, a and b the
  accuracies of the halves."""
  rewards, entropy, mask, noise = batch()
  upper = canon.upper_half(canon.mean_entropy(entropy, mask), noise, size=8)
  r = rewards.reshape(-1, 8)
  a, b = (jnp.where(on, r, 0.0).sum(1) / 4.0 for on in (upper, ~upper))
  inter = jnp.abs(canon.by_entropy(rewards, entropy, mask, noise, size=8)).reshape(-1, 8).mean(1)
  plain = jnp.abs(grpo.centred_advantage(rewards, size=8)).reshape(-1, 8).mean(1)
  np.testing.assert_allclose(inter, a + b - 2 * a * b, atol=1e-6)
  np.testing.assert_allclose(inter - plain, (a - b) ** 2 / 2, atol=1e-6)


def test_alpha_by_length_prefers_short_right_answers():
  _, _, mask, noise = batch()
  adv = canon.by_length(jnp.ones(len(mask)), mask, noise, size=8, alpha=0.9)
  upper = canon.upper_half(mask.sum(1).astype(jnp.float32), noise, size=8).reshape(-1)
  np.testing.assert_allclose(adv, jnp.where(upper, -0.1, 0.1), atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_odd_groups_have_the_larger_half_on_top(size):
  rewards, entropy, mask, noise = (x[:2 * size] for x in batch())
  upper = canon.upper_half(canon.mean_entropy(entropy, mask), noise, size=size)
  assert (upper.sum(1) == size - size // 2).all()
  if size == 1:
    got = canon.by_entropy(rewards, entropy, mask, noise, size=1, mu=0.3)
    np.testing.assert_array_equal(got, rewards)


def test_the_schedule_moves_once_a_rollout():
  control = canon.Cosine(updates=4)
  state, seen = control.init(), []
  for _ in range(12):
    seen.append(float(state["intra"]))
    state = control.update(state, {})
  want = [float(canon.cosine_weight(jnp.asarray(s))) for s in (1, 2, 3)]
  np.testing.assert_allclose(seen, np.repeat(want, 4), atol=1e-6)
