"""Many samples a prompt, a slice at a time: T1 draws 64, more than a cache may hold at once."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.ranks import grouped
from entrolab.rollout.engine import Engine, SingleTurn, refilled, row_keys
from entrolab.rollout.strategy import Drawn, Prompted, Request, Rollout
from entrolab.tasks.task import Example


@functools.partial(jax.jit, static_argnums=1)
def _merged(slices: Sequence[Any], size: int) -> Any:
  """Trees of rows [P size, ...], one a slice -> the tree of the rows of whole groups."""
  groups = lambda *xs: jnp.concatenate([grouped(x, size) for x in xs], axis=1)
  return jax.tree.map(lambda *xs: groups(*xs).reshape(-1, *xs[0].shape[1:]), *slices)


def sliced(engine: Engine, request: Request, prompted: Prompted, count: int, size: int) -> Drawn:
  """`count` responses to every prompt, `size` of them in a call of the sampler.

  The tokens are those of one call for all: a row's key names its sample, not its slice. Raises
  ValueError where slices do not fill the samples.
  """
  if size < 1 or count % size:
    choices = [s for s in range(1, count + 1) if count % s == 0]
    raise ValueError(f"{count} samples a prompt in slices of {size}; choices: {choices}")
  sampling = dataclasses.replace(request.sampling, samples=size)
  slices, steps = [], 0
  for first in range(0, count, size):
    keys = row_keys(request.key, np.int32(request.step), prompted.ids, size, first=np.int32(first))
    samples = engine.sample(request.params, prompted, keys, sampling)
    steps += int(samples.steps)
    # a scalar is no row, and is counted here
    slices.append((keys, dataclasses.replace(samples, steps=None)))
  keys, samples = _merged(slices, size)
  return Drawn(prompted, keys, dataclasses.replace(samples, steps=steps))


@dataclasses.dataclass(frozen=True)
class Oversample(SingleTurn):
  """`Plain` with the samples of a prompt drawn `size` at a time: the responses are the same, the
  cache is that of P x size rows."""
  size: int = 8  # samples of a prompt in one call; divides sampling.samples

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified rows of one step, groups replaced where the request allows it."""
    def rollout_of(examples: Sequence[Example]) -> Rollout:
      prompted = engine.prompted(examples)
      return engine.judged(sliced(engine, request, prompted, request.sampling.samples, self.size))

    return refilled(rollout_of, request)
