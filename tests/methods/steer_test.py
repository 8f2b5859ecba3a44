"""STEER: golden parity, bounds, and how well each form foretells the entropy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.methods import grpo, ppo, steer
from entrolab.objective import Objective, term
from tests import adapters, bandit


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  columns = {**case.columns(), **live, "old_entropy": case["entropy_in"]}
  args = [columns[k] for k in ("logp", "entropy", "old_logp", "old_entropy", "adv")]
  case.compare("omega", jnp.where(mask, steer.change(*args), 0.0))
  low = config["token_weight_min"]
  if config["linear"]:
    config.ignore("the exponential form alone has a floor", "exp_floor")
    weight = term(steer.linear, low=low, high=config["token_weight_max"])
  else:
    config.ignore("the largest weight of the exponential form is 1", "token_weight_max")
    weight = term(steer.exponential, low=low, floor=config["exp_floor"])
  case.compare("token_weights", weight(columns))
  objective = Objective(
      surrogate=term(ppo.clipped_ratio, low=config["clip_ratio_low"],
                     high=config["clip_ratio_high"], dual=config["clip_ratio_c"]),
      weights=(weight,),
      aggregate=adapters.aggregation(config, "loss_agg_mode", width=mask.shape[1]))
  loss, grad = adapters.loss_and_grad(objective, case, logits, old_entropy=case["entropy_in"])
  live["old_entropy"] = case["entropy_in"]
  case.compare("loss", loss, tolerance=adapters.slack(case, objective, live, loss))
  case.compare("grad_logits", grad)


def columns(seed=0, shape=(8, 16), advantages=1.0):
  rng = np.random.default_rng(seed)
  logp, old = (jnp.asarray(-rng.exponential(size=shape), jnp.float32) for _ in range(2))
  entropy = jnp.asarray(rng.gamma(2.0, size=shape), jnp.float32)
  adv = jnp.asarray(advantages * rng.normal(size=shape), jnp.float32)
  return (logp, entropy, old, entropy, adv), jnp.asarray(rng.random(shape) < 0.8)


def test_weights_reach_their_bounds_at_the_extremes():
  """Claim a."""
  args, mask = columns()
  size = jnp.abs(steer.change(*args))
  most = jnp.argmax(jnp.where(mask, size, -1.0))
  least = jnp.argmin(jnp.where(mask, size, jnp.inf))
  for w, high in ((steer.linear(*args, mask), 1.2), (steer.exponential(*args, mask), 1.0)):
    valid = np.asarray(w)[np.asarray(mask)]
    assert (valid >= 0.8 - 1e-6).all() and (valid <= high + 1e-6).all()
    assert abs(float(w.ravel()[most]) - 0.8) < 1e-6 and (w[~mask] == 0.0).all()
    assert abs(float(w.ravel()[least]) - high) < 1e-2


def test_no_advantage_is_the_middle_or_one():
  args, mask = columns(advantages=0.0)
  assert (steer.linear(*args, mask)[mask] == 1.0).all()
  assert (steer.linear(*args, mask, low=0.5, high=1.2)[mask] == np.float32(0.85)).all()
  assert (steer.exponential(*args, mask)[mask] == 1.0).all()
  empty = jnp.zeros_like(mask)
  assert (steer.linear(*args, empty) == 0.0).all()


@pytest.mark.parametrize("actions", [32, 1000])
def test_the_exact_form_foretells_the_entropy_and_the_others_only_follow(actions):
  """One sampled token a state, true change of entropy of a small softmax step: correlation of the
  exact form 1, of the other forms clearly less; the code's form is not the best of them."""
  rng = np.random.default_rng(0)
  z = jnp.asarray(rng.normal(size=(1500, actions)) * (1.0 if actions == 32 else 3.0), jnp.float32)
  lp = jax.nn.log_softmax(z)
  tokens = jax.random.categorical(jax.random.key(0), lp)
  pick = jax.nn.one_hot(tokens, actions)
  logp = (pick * lp).sum(-1)
  p = jnp.exp(lp)
  h = lambda z: -(jax.nn.softmax(z) * jax.nn.log_softmax(z)).sum(-1)
  adv = jnp.asarray(rng.normal(size=1500), jnp.float32)
  # the slope of the entropy along the step, without cancellation
  _, true = jax.jvp(h, (z,), (adv[:, None] * (pick - p),))
  args = (logp, h(z), logp, h(z), adv)
  forms = {f: steer.change(*args, form=f) for f in ("code", "squared", "own_logit")}
  exact = steer.exact_change(logp, h(z), (p * p).sum(-1), (p * p * lp).sum(-1), logp, adv)
  np.testing.assert_allclose(-exact, true, atol=1e-5)
  fit = {f: np.corrcoef(np.asarray(-x), np.asarray(true))[0, 1] for f, x in forms.items()}
  print(actions, {f: round(float(r), 3) for f, r in fit.items()})
  assert all(0.4 < r < 0.95 for r in fit.values())
  assert max(fit["squared"], fit["own_logit"]) > fit["code"]


def test_entropy_lasts_longer_than_under_shorter_steps():
  """Claims b and c on a bandit of two right actions out of 16, four updates a rollout, three seeds:
  more entropy than GRPO, even when GRPO's steps are shortened by as much as the mean weight would;
  a smaller spread of the change of entropy from rollout to rollout; the same reward."""
  task = bandit.Task(good=2, updates=4, rate=2.0)
  shorter = dataclasses.replace(task, rate=1.4)
  common = dict(reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=8),
                surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28, dual=10.0))
  runs = [bandit.train(task, Objective(**common)), bandit.train(shorter, Objective(**common)),
          bandit.train(task, Objective(**common, weights=(term(steer.exponential, low=0.3),)))]
  late = [r["entropy"][:, -50:].mean(1) for r in runs]
  spread = [np.diff(r["entropy"], axis=1).std(1) for r in runs]
  reward = [r["reward"][:, -20:].mean() for r in runs]
  print("entropy of the last half", *late, "spread", *spread, "reward", *reward)
  assert (late[2] > 1.1 * late[0]).all() and (late[2] > 1.1 * late[1]).all()
  assert (spread[2] < spread[0]).all() and abs(reward[2] - reward[0]) < 0.01
