"""One response more to every prompt, the greedy one: its reward is ReMax's baseline."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from entrolab import sharding
from entrolab.methods import grpo
from entrolab.rollout.engine import Engine, SingleTurn, refilled
from entrolab.rollout.strategy import Request, Rollout, Sampling
from entrolab.tasks.task import Example


@dataclasses.dataclass(frozen=True)
class Greedy(SingleTurn):
  """G responses to every prompt, and a greedy one that is not learned from.

  Column greedy_rewards [B]: the outcome of the greedy response to a row's prompt, 1 right, 0 wrong.
  Where its verdict is unknown there is no baseline: it is NaN, and the rows of the prompt are not
  learned from (`known`).
  """
  columns = ("greedy_rewards", "known")

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified rows of one step; `sampled` counts the greedy ones, too."""
    sampling = request.sampling
    once = dataclasses.replace(sampling, samples=1, temperature=0.0, slots=0)

    def draw(examples: Sequence[Example], how: Sampling) -> Rollout:
      return engine.rollout(request.params, examples, request.key, request.step, how)

    def with_baseline(examples: Sequence[Example]) -> Rollout:
      rollout, greedy = draw(examples, sampling), draw(examples, once)
      right = np.asarray(sharding.local(jax.jit(grpo.outcome)(greedy.batch.verdict)))
      baseline = np.repeat(right, sampling.samples)
      batch = rollout.batch.replace(greedy_rewards=engine.place(baseline),
                                    known=engine.place(~np.isnan(baseline)))
      return dataclasses.replace(
          rollout, batch=batch,
          steps=rollout.steps + greedy.steps, sampled=rollout.sampled + greedy.sampled,
          verify_seconds=rollout.verify_seconds + greedy.verify_seconds)

    return refilled(with_baseline, request)
