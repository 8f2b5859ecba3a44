"""Soft-Q: the fixed point is softmax(r / alpha), whoever sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import aggregate
from entrolab.methods import gae, ppo, soft_q
from entrolab.objective import Objective, term

COLUMNS = dict(value=lambda rng: rng.normal(size=(16, 12)).astype(np.float32))
V, ALPHA = 3, 0.5
REWARDS = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
# how often each of the 9 answers of two tokens occurs in the batch: evenly, or seven of one
BEHAVIOUR = dict(even=[2] * 9, skewed=[7, 1, 1, 1, 3, 1, 2, 1, 1])


def answers(counts):
  index = np.repeat(np.arange(V * V), counts)
  tokens = np.stack([index // V, index % V], 1)
  return jnp.asarray(tokens), jnp.asarray(REWARDS.ravel()[index])


def logp_of(params, tokens):
  """[B, 2] of a tabular policy: logits of the first token, and of the second given the first."""
  first = jax.nn.log_softmax(params["first"])[tokens[:, 0]]
  second = jax.nn.log_softmax(params["second"])[tokens[:, 0], tokens[:, 1]]
  return jnp.stack([first, second], 1)


def fit(loss, params, rate, steps):
  step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - rate * g, p, jax.grad(loss)(p)))
  for _ in range(steps):
    params = step(params)
  first, second = (np.asarray(jax.nn.softmax(params[k])) for k in ("first", "second"))
  return (first[:, None] * second).ravel()


def start():
  rng = np.random.default_rng(1)
  return dict(first=jnp.asarray(rng.normal(size=V), jnp.float32),
              second=jnp.asarray(rng.normal(size=(V, V)), jnp.float32))


def objective_loss(objective, counts):
  tokens, rewards = answers(counts)
  columns = dict(mask=jnp.ones(tokens.shape, bool), rewards=rewards,
                 adv=jnp.zeros(tokens.shape), old_logp=logp_of(start(), tokens),
                 ref_logp=logp_of(start(), tokens))
  return lambda p: objective.loss({**columns, "logp": logp_of(p, tokens)})[0]


def distance(p, q):
  return 0.5 * np.abs(p - q).sum()


@pytest.mark.parametrize("behaviour", BEHAVIOUR)
def test_fixed_point_does_not_depend_on_the_behaviour(behaviour):
  counts = BEHAVIOUR[behaviour]
  objective = Objective(
      advantage=term(soft_q.residual, size=sum(counts), alpha=ALPHA),
      surrogate=term(ppo.reinforce), aggregate=term(aggregate.sequence_sum))
  p = fit(objective_loss(objective, counts), start(), 1.0, 600)
  want = np.exp(REWARDS.ravel() / ALPHA)
  assert distance(p, want / want.sum()) < 1e-3


def test_the_policy_gradient_depends_on_it():
  """The same batches under -A log pi with an even baseline end in different policies."""
  ends = []
  for counts in BEHAVIOUR.values():
    tokens, rewards = answers(counts)
    adv = jnp.broadcast_to((rewards - rewards.min() + 0.1)[:, None], tokens.shape)
    objective = Objective(surrogate=term(ppo.reinforce), aggregate=term(aggregate.sequence_sum))
    columns = dict(mask=jnp.ones(tokens.shape, bool), adv=adv)
    ends.append(fit(lambda p, c=columns, t=tokens, o=objective: o.loss(
        {**c, "logp": logp_of(p, t)})[0], start(), 0.5, 400))
  assert distance(*ends) > 0.1


def test_reference_gives_the_tilted_reference():
  counts = BEHAVIOUR["skewed"]
  objective = Objective(
      advantage=term(soft_q.reference_residual, size=sum(counts), alpha=ALPHA),
      surrogate=term(ppo.reinforce), aggregate=term(aggregate.sequence_sum))
  p = fit(objective_loss(objective, counts), start(), 1.0, 600)
  first, second = (np.asarray(jax.nn.softmax(start()[k])) for k in ("first", "second"))
  want = (first[:, None] * second).ravel() * np.exp(REWARDS.ravel() / ALPHA)
  assert distance(p, want / want.sum()) < 1e-3


@pytest.mark.parametrize("behaviour", BEHAVIOUR)
def test_token_residual_with_a_critic_finds_the_same_point(behaviour):
  """V is learned by the same residual: alpha log sum exp(R / alpha) at the prompt."""
  tokens, rewards = answers(BEHAVIOUR[behaviour])
  mask = jnp.ones(tokens.shape, bool)
  objective = Objective(surrogate=term(soft_q.bellman, alpha=ALPHA), extra=("value",),
                        aggregate=term(aggregate.sequence_sum))
  params = {**start(), "v0": jnp.zeros(()), "v1": jnp.zeros(V)}

  def loss(p):
    value = jnp.stack([jnp.broadcast_to(p["v0"], rewards.shape), p["v1"][tokens[:, 0]]], 1)
    columns = dict(mask=mask, adv=gae.last_token(rewards, mask), value=value)
    return objective.loss({**columns, "logp": logp_of(p, tokens)})[0]

  p = fit(loss, params, 1.0, 1500)
  want = np.exp(REWARDS.ravel() / ALPHA)
  assert distance(p, want / want.sum()) < 1e-3


def test_its_gradient_is_that_of_the_squared_residual():
  counts = BEHAVIOUR["skewed"]
  tokens, rewards = answers(counts)
  objective = Objective(
      advantage=term(soft_q.residual, size=sum(counts), alpha=ALPHA),
      surrogate=term(ppo.reinforce), aggregate=term(aggregate.sequence_sum))
  got = jax.grad(objective_loss(objective, counts))(start())

  def squares(p):
    gap = rewards - ALPHA * logp_of(p, tokens).sum(1)
    return jnp.square(gap - gap.mean()).mean() / (2.0 * ALPHA)

  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(squares)(start())), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
