"""One response more to every prompt, the greedy one: its reward is ReMax's baseline."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from entrolab import sharding
from entrolab.methods import grpo
from entrolab.rollout import plain


@dataclasses.dataclass(frozen=True)
class Greedy:
  """G responses to every prompt, and a greedy one that is not learned from.

  Column greedy_rewards [B]: the outcome of the greedy response to a row's prompt, 1 right, else 0.
  """
  engine: ClassVar[type[plain.Sampler]] = plain.Sampler
  columns: ClassVar[tuple[str, ...]] = ("greedy_rewards",)

  def __call__(self, sampler: plain.Sampler, ask: plain.Request) -> plain.Rollout:
    """The verified rows of one step; sampled counts the greedy ones, too."""
    samples = ask.knobs["samples"]

    def sample(examples):
      draw = lambda **more: sampler.rollout(ask.params, examples, ask.key, ask.step,
                                            **{**ask.knobs, **more})
      got, best = draw(), draw(samples=1, temperature=0.0, slots=0)
      right = np.asarray(sharding.local(jax.jit(grpo.outcome)(best.batch.verdict)))
      batch = got.batch.replace(greedy_rewards=sampler.place(np.repeat(right, samples)))
      return dataclasses.replace(got, batch=batch, steps=got.steps + best.steps,
                                 sampled=got.sampled + best.sampled,
                                 verify_seconds=got.verify_seconds + best.verify_seconds)

    return plain.filled(sample, ask.draw, samples, ask.refills)
