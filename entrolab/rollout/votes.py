"""More samples than are learned from: all of them vote, the first ones are kept (TTRL)."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.methods import ttrl
from entrolab.ranks import grouped
from entrolab.rollout import plain
from entrolab.rollout.oversample import sliced


@functools.partial(jax.jit, static_argnums=(1, 2))
def _first(tree, votes, samples):
  """The first rows of every group."""
  return jax.tree.map(
      lambda x: grouped(x, votes)[:, :samples].reshape(-1, *x.shape[1:]), tree)


@dataclasses.dataclass(frozen=True)
class Votes:
  """`votes` samples of every prompt, drawn `size` at a time, of which the first G stay.

  Columns [B]: cluster, classes of equal answers among all votes, -1 without an answer; elected,
  whether a row's class has most of all votes, ties to the answer that appears first. silent: rows
  without an answer are a class like any other, as in the official code. Raises ValueError for
  fewer votes than samples, and where refills are asked for: groups with a signal are known by
  their labels alone.
  """
  votes: int = 64
  size: int = 16
  silent: bool = False
  engine: ClassVar[type[plain.Sampler]] = plain.Sampler
  columns: ClassVar[tuple[str, ...]] = ("cluster", "elected")

  def __call__(self, sampler: plain.Sampler, ask: plain.Request) -> plain.Rollout:
    """The verified rows of one step; sampled counts those that only voted, too."""
    samples = ask.knobs["samples"]
    if samples > self.votes:
      raise ValueError(f"sampling.samples={samples} of votes={self.votes}: keep at most all")
    if ask.refills:
      raise ValueError(f"sampling.refills={ask.refills}: votes have no labels to find a signal by; "
                       "set sampling.refills=0")
    asked = sampler.asked(ask.draw())
    keys, out = sliced(sampler, ask, asked, self.votes, self.size)
    texts = sampler.texts(out)
    cluster = plain.cluster(sampler, texts, out, self.votes)
    elected = np.asarray(ttrl.agreement(jnp.asarray(cluster), size=self.votes,
                                        silent=self.silent)) > 0
    steps = out.steps
    keys, out = _first((keys, dataclasses.replace(out, steps=None)), self.votes, samples)
    got = sampler.judged(asked, keys, dataclasses.replace(out, steps=steps), samples)
    kept = lambda x: sampler.place(x.reshape(-1, self.votes)[:, :samples].reshape(-1))
    batch = got.batch.replace(cluster=kept(cluster), elected=kept(elected))
    return dataclasses.replace(got, batch=batch, sampled=got.sampled // samples * self.votes)
