"""Estimators of the advantage: verl's golden files, and what estimators promise."""

import jax.numpy as jnp
import numpy as np

from entrolab.methods import gae, gpg, grpo, lite_ppo, opo, otb, passk, reinforce_pp, remax, rloo
from tests import adapters

G = 4
ESTIMATORS = dict(grpo=grpo.group_advantage, drgrpo=grpo.centred_advantage,
                  rloo=rloo.leave_one_out, gpg=gpg.scaled_advantage, batch=lite_ppo.batch_scaled)


def _compare_whitened(case, name, value, mask):
  value = jnp.where(mask, value, 0.0)
  where = mask if name.startswith("gae") else None  # theirs leaves numbers on padding
  if not np.asarray(value).any():
    # equal returns: ours is exactly 0, theirs about 1e-4 / N of the return (it divides by N + 1e-8)
    case.require(np.abs(case.raw(name)[np.asarray(mask)]).max(initial=0.0) < 1e-3,
                 f"{name} is not 0, ours is")
    return case.compare(name, value, where=where, tolerance=1.0)
  return case.compare(name, value, where=where)


def golden(case):
  config, mask, token_rewards = case.config, case["response_mask"], case["token_level_rewards"]
  rewards = token_rewards.sum(1)  # an empty row has none, whatever its verdict
  eps, gammas = config["epsilon"], config["gamma"]
  config.expect(reward="placed at last valid token")
  spread = lambda row: jnp.where(mask, row[:, None], 0.0)
  per_group = lambda fn, **k: spread(adapters.per_group(case, fn, rewards, **k))
  case.compare("grpo", per_group(grpo.group_advantage, eps=eps))
  case.compare("drgrpo", per_group(grpo.centred_advantage))
  case.compare("rloo", per_group(rloo.leave_one_out))
  case.compare("rloo_vectorized", per_group(rloo.leave_one_out, alone=0.0))
  norms = {"norm by std": "std", "no norm": "none"}
  config.expect(grpo_passk=tuple(norms))
  if "grpo_passk" in case:
    case.compare("grpo_passk", per_group(passk.best_margin, eps=eps,
                                         norm=norms[config["grpo_passk"]]))
  case.compare("opo", spread(adapters.per_group(case, opo.length_baseline, rewards, mask)))
  scaled = gpg.rescale(rewards) * adapters.per_group(case, grpo.centred_advantage, rewards)
  case.compare("gpg", spread(scaled))
  if adapters.whole_groups(case):
    case.compare("gpg", spread(gpg.scaled_advantage(rewards, size=adapters.whole_groups(case))))
  for name in ("reinforce_pp", "reinforce_pp_g09"):
    back = gae.return_to_go(token_rewards, mask, gamma=gammas[name], gap="reset")
    _compare_whitened(case, name, reinforce_pp.whitened(back, mask), mask)
  centred = per_group(grpo.centred_advantage)
  _compare_whitened(case, "reinforce_pp_baseline", reinforce_pp.whitened(centred, mask), mask)
  returns = gae.return_to_go(token_rewards, mask)
  case.compare("remax_returns", returns)
  case.compare("remax", remax.less_greedy(returns, mask, case["reward_baselines"]))
  for name in ("gae", "gae_11"):
    gamma, lam = gammas[name]
    raw = gae.generalised(token_rewards, case["values"], mask, gamma=gamma, lam=lam)
    case.compare(f"{name}_returns", raw + case["values"], where=mask)
    _compare_whitened(case, name, reinforce_pp.whitened(raw, mask), mask)
  args = returns, case["old_logprobs"], case["sum_pi_squared"], mask
  case.compare("otb", adapters.per_group(case, otb.less_baseline, *args))


def test_group_estimators_sum_to_zero_and_point_the_same_way():
  """Claim 1: for binary rewards in one group the estimators differ by a factor alone."""
  rewards = jnp.asarray([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
  for fn in ESTIMATORS.values():
    adv = np.asarray(fn(rewards, size=G)).reshape(-1, G)
    np.testing.assert_allclose(adv.sum(1), 0.0, atol=1e-6)
    first = np.asarray(rewards[:G] - rewards[:G].mean())
    np.testing.assert_allclose(adv[0] / adv[0, 0], first / first[0], rtol=1e-5)


def test_equal_groups_are_exactly_zero_unless_the_batch_is_whitened():
  """Claim 2: with a third of the batch right, 1 / 3 does not come back from its own mean."""
  rewards = jnp.asarray([1 / 3] * G + [1.0, 0.0, 0.0, 0.0])
  mask = jnp.arange(5)[None] < jnp.asarray([[1, 2, 3, 5] * 2]).T
  rows = {name: fn(rewards, size=G) for name, fn in ESTIMATORS.items()}
  rows["opo"] = opo.length_baseline(rewards, mask, size=G)
  rows["passk"] = passk.best_margin(rewards, size=G)
  for name, adv in rows.items():
    assert (np.asarray(adv)[:G] == 0.0).all() and np.asarray(adv)[G:].any(), name
  adv = reinforce_pp.whitened(gae.return_to_go(gae.last_token(rewards, mask), mask), mask)
  assert (np.asarray(adv)[:G][np.asarray(mask)[:G]] != 0.0).all()


def test_opo_is_the_group_mean_for_equal_lengths():
  rewards, mask = jnp.asarray([1.0, 0.0, 0.0, 0.0]), jnp.ones((4, 3), bool)
  want = grpo.centred_advantage(rewards, size=G)
  np.testing.assert_allclose(opo.length_baseline(rewards, mask, size=G), want, atol=1e-7)
  longer = mask.at[1:, 1:].set(False)  # the right one is three times as long: its reward counts so
  np.testing.assert_allclose(opo.length_baseline(rewards, longer, size=G)[0], 0.5, atol=1e-7)


def test_the_optimal_baseline_lowers_the_variance_of_the_gradient():
  """Four responses of two tokens under a softmax policy: sum of variances of the logit gradient,
  over 4000 groups, less than without a baseline."""
  rng = np.random.default_rng(2)
  p = np.array([0.6, 0.2, 0.15, 0.05])
  tokens = rng.choice(4, p=p, size=(4000 * G, 2))
  rewards = jnp.asarray((tokens.sum(1) <= 1).astype(np.float32))
  mask, onehot = jnp.ones((len(tokens), 2), bool), np.eye(4)[tokens] - p
  logp, p2 = np.log(p)[tokens].astype(np.float32), np.full(tokens.shape, (p**2).sum(), np.float32)
  returns = gae.return_to_go(gae.last_token(rewards, mask), mask)
  adv = np.asarray(otb.less_baseline(returns, jnp.asarray(logp), jnp.asarray(p2), mask, size=G))
  spread = lambda a: (a[..., None] * onehot).sum(1).var(0).sum()
  assert spread(adv) < 0.8 * spread(np.asarray(returns))
