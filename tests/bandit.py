"""A tabular policy trained through a whole objective, for claims about entropy and reward.

States are prompts, a response has T tokens; position t of state s has its own V logits, so that
every entropy is exact and nothing is shared. One or more optimiser steps a rollout.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import control, vocab
from entrolab.batch import Batch
from entrolab.objective import Objective


@dataclasses.dataclass(frozen=True)
class Task:
  """A response is right iff its first `decisive` tokens all lie under `good`."""
  states: int = 16
  samples: int = 8
  length: int = 1
  actions: int = 16
  good: int = 1
  decisive: int = 1
  spread: float = 1.0  # deviation of the initial logits
  rate: float = 8.0
  steps: int = 100
  updates: int = 1
  tempered: int = 0  # states drawn once more, at the controlled `temperature`

  def verdict(self, tokens):
    return (tokens[:, :self.decisive] < self.good).all(1).astype(jnp.int32)

  def start(self, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(self.states, self.length, self.actions)) * self.spread
    return jnp.asarray(z, jnp.float32)


def train(task: Task, objective: Objective,
          seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, np.ndarray]:
  """Curves [seed, rollout]: mean exact entropy (nats a token) and mean verdict."""
  drawn = np.concatenate([np.arange(task.states), np.arange(task.tempered)])
  rows = jnp.asarray(np.repeat(drawn, task.samples))
  tempered = jnp.arange(len(rows)) >= task.states * task.samples
  spec = objective.statistics

  def update(carry, noise):
    z, state, batch = carry
    live = lambda z: vocab.from_logits(z[rows], batch.tokens, spec)
    columns = {**batch.columns(), **state, "noise": noise}
    grad = jax.grad(lambda z: objective.loss({**columns, **live(z)})[0])(z)
    metrics = {"entropy/exact": vocab.entropy(z).mean()}
    return (z - task.rate * task.states * grad,
            control.update(objective.control, state, metrics), batch), None

  def rollout(carry, key):
    z, state = carry
    draw, ties = jax.random.split(key)
    heat = jnp.where(tempered, state.get("temperature", 1.0), 1.0)
    tokens = jax.random.categorical(draw, z[rows] / heat[:, None, None])
    old = vocab.from_logits(z[rows], tokens, vocab.Spec(names=("entropy", "logp")))
    verdict = task.verdict(tokens)
    batch = objective.prepare(Batch(
        tokens=tokens, mask=jnp.ones(tokens.shape, bool), group=rows, old_logp=old["logp"],
        old_entropy=old["entropy"], verdict=verdict).replace(tempered=tempered), state)
    noise = jax.random.uniform(ties, (task.updates, *tokens.shape))
    (new, state, _), _ = jax.lax.scan(update, (z, state, batch), noise)
    right = verdict[:task.states * task.samples]
    return (new, state), (vocab.entropy(z).mean(), right.mean(dtype=jnp.float32))

  def run(z, key):
    keys = jax.random.split(key, task.steps)
    return jax.lax.scan(rollout, (z, control.init(objective.control)), keys)[1]

  start = jnp.stack([task.start(seed) for seed in seeds])
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  entropy, reward = jax.jit(jax.vmap(run))(start, keys)
  return {"entropy": np.asarray(entropy), "reward": np.asarray(reward)}
