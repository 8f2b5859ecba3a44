"""Many samples a prompt, a slice at a time: T1 draws 64, more than a cache may hold at once."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.ranks import grouped
from entrolab.rollout.decode import Samples
from entrolab.rollout.plain import Asked, Request, Rollout, Sampler, filled, row_keys
from entrolab.tasks.task import Example


@functools.partial(jax.jit, static_argnums=1)
def _merged(parts, size):
  """Trees of rows [P size, ...], slice by slice -> the rows of whole groups."""
  groups = lambda *xs: jnp.concatenate([grouped(x, size) for x in xs], axis=1)
  return jax.tree.map(lambda *xs: groups(*xs).reshape(-1, *xs[0].shape[1:]), *parts)


def sliced(sampler: Sampler, ask: Request, asked: Asked, count: int, size: int
           ) -> tuple[jax.Array, Samples]:
  """(keys, responses) of `count` samples of every prompt, `size` of them in a call.

  The tokens are those of one call for all: a row's key names its sample, not its slice. Raises
  ValueError where slices do not fill the samples.
  """
  if size < 1 or count % size:
    choices = [s for s in range(1, count + 1) if count % s == 0]
    raise ValueError(f"{count} samples a prompt in slices of {size}; choices: {choices}")
  knobs = {**ask.knobs, "samples": size}
  parts, steps = [], 0
  for first in range(0, count, size):
    keys = row_keys(ask.key, np.int32(ask.step), asked.ids, size, first=np.int32(first))
    out = sampler.sample(ask.params, asked, keys, **knobs)
    steps += int(out.steps)
    parts.append((keys, dataclasses.replace(out, steps=None)))
  keys, out = _merged(parts, size)
  return keys, dataclasses.replace(out, steps=steps)


@dataclasses.dataclass(frozen=True)
class Oversample:
  """`Plain` with the samples of a prompt drawn `size` at a time: the responses are the same, the
  cache is that of P x size rows."""
  size: int = 8
  engine: ClassVar[type[Sampler]] = Sampler
  columns: ClassVar[tuple[str, ...]] = ()

  def __call__(self, sampler: Sampler, ask: Request) -> Rollout:
    """The verified rows of one step, refilled where the request allows it."""
    samples = ask.knobs["samples"]

    def sample(examples: Sequence[Example]) -> Rollout:
      asked = sampler.asked(examples)
      return sampler.judged(asked, *sliced(sampler, ask, asked, samples, self.size), samples)

    return filled(sample, ask.draw, samples, ask.refills)
