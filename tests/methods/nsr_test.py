"""PSR, NSR, W-REINFORCE: golden parity, and the decomposition."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate
from entrolab.methods import grpo, nsr, ppo
from entrolab.objective import Objective, term
from tests import adapters, bandit


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  rewards = case.raw("rewards")
  case.require(set(rewards) <= {0.0, 1.0}, "a reward is neither 0 nor 1")
  config.expect(gamma=1.0)  # every token has the reward of its response
  scales = [adapters.aggregation(config, rest=" over the kept rows", width=mask.shape[1],
                                 names=names) for names in (adapters.SELECTED, adapters.AGGREGATES)]
  case.ignore("token_level_rewards", "the reward of the response, on every or its last token")
  verdict = jnp.asarray(rewards, jnp.int32)
  forms = dict(positive=(nsr.positive, {}), negative=(nsr.negative, {}),
               weighted=(nsr.weighted, dict(positive=config["positive_advantage_weight"])))
  clip = config["clip_ratio"]
  clipped = term(ppo.clipped_ratio, low=clip, high=clip, limit=float("inf"))
  kept = dict(weights=(term(nsr.kept_rows),), aggregate=scales[0])
  recipes = {"": dict(surrogate=clipped, **kept),
             "fullbatch_": dict(surrogate=clipped, aggregate=scales[1]),
             "reinforce_": dict(surrogate=term(ppo.reinforce), aggregate=scales[1])}
  for name, (fn, knobs) in forms.items():
    row = fn(verdict, **knobs)
    adv = jnp.where(mask, row[:, None], 0.0)
    case.compare(f"adv_{name}", adv)
    case.compare(f"keep_{name}", row != 0.0)
    for prefix, recipe in recipes.items():
      if f"loss_{prefix}{name}" in case:  # missing where no row is kept
        objective = Objective(advantage=term(fn, **knobs), **recipe)
        loss, grad = adapters.loss_and_grad(objective, case, logits, adv=adv)
        case.compare(f"loss_{prefix}{name}", loss)
        case.compare(f"grad_{prefix}{name}", grad)
      else:
        case.require(not (np.asarray(row) != 0.0).any(), f"loss_{prefix}{name} is missing")


def gradient(advantage, verdict, **more):
  """Gradient by the log-probs, 8 rows of 5 tokens."""
  rng = np.random.default_rng(0)
  logp = jnp.asarray(-rng.exponential(size=(8, 5)), jnp.float32)
  objective = Objective(surrogate=term(ppo.reinforce), advantage=advantage, **more)
  mask = jnp.asarray(rng.random((8, 5)) < 0.8)
  rewards = verdict.astype(jnp.float32)
  adv = jnp.where(mask, advantage(dict(verdict=verdict, rewards=rewards))[:, None], 0.0)
  columns = dict(mask=mask, adv=adv)
  return np.asarray(jax.grad(lambda x: objective.loss({**columns, "logp": x})[0])(logp))


def test_weighted_is_the_sum_of_its_parts():
  """Claim a, with the denominator of the whole batch; not with that of the kept rows."""
  verdict = jnp.asarray([1, 0, 0, 1, 0, -1, 0, 0])
  parts = [gradient(term(fn), verdict) for fn in (nsr.positive, nsr.negative)]
  whole = gradient(term(nsr.weighted, positive=0.1), verdict)
  np.testing.assert_allclose(whole, 0.1 * parts[0] + parts[1], atol=1e-8)
  kept = dict(weights=(term(nsr.kept_rows),), aggregate=term(aggregate.selected_mean))
  parts = [gradient(term(fn), verdict, **kept) for fn in (nsr.positive, nsr.negative)]
  assert np.abs(gradient(term(nsr.weighted, positive=0.1), verdict, **kept)
                - 0.1 * parts[0] - parts[1]).max() > 1e-3


def test_groups_without_a_contrast():
  """Claim b: all right gives NSR nothing; all wrong moves NSR and not GRPO."""
  right, wrong = jnp.ones(8, jnp.int32), jnp.zeros(8, jnp.int32)
  assert (gradient(term(nsr.negative), right) == 0.0).all()
  assert np.abs(gradient(term(nsr.negative), wrong)).max() > 1e-3
  assert (gradient(term(grpo.group_advantage, size=4), wrong) == 0.0).all()
  assert (gradient(term(nsr.positive), wrong) == 0.0).all()


def test_a_wrong_token_gives_its_mass_away_in_proportion():
  """d loss / d z = -(pi_u) for every other token u, 1 - pi for the token itself."""
  z = jnp.asarray([[[1.0, 0.0, -1.0, 2.0]]])
  p = np.asarray(jax.nn.softmax(z))[0, 0]
  loss = lambda z: ppo.reinforce(jax.nn.log_softmax(z)[..., 1], nsr.negative(
      jnp.asarray([0]))[:, None]).sum()
  np.testing.assert_allclose(jax.grad(loss)(z)[0, 0], np.eye(4)[1] - p, atol=1e-6)


def test_negative_reinforcement_leaves_more_entropy_than_positive():
  """Claim c on a bandit of two right actions out of 16, three seeds: NSR, W above PSR at the end.

  NSR >= W did not show (0.065, 0.059, 0.061 against 0.071, 0.053, 0.049 nats), and the claim on
  pass@k needs a strong prior, which a table has not: printed, not asserted.
  """
  task, end = bandit.Task(good=2, updates=4, rate=2.0), {}
  for fn in (nsr.positive, nsr.weighted, nsr.negative):
    run = bandit.train(task, Objective(surrogate=term(ppo.clipped_ratio), advantage=term(fn)))
    end[fn.__name__] = run["entropy"][:, -10:].mean(1)
    print(fn.__name__, end[fn.__name__], "reward", run["reward"][:, -20:].mean(1))
  assert (np.minimum(end["negative"], end["weighted"]) > 2.0 * end["positive"]).all()
