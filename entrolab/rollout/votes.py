"""More samples than are learned from: all of them vote, the first ones stay (TTRL)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.methods import ttrl
from entrolab.ranks import grouped
from entrolab.rollout.columns import classes
from entrolab.rollout.engine import Engine, SingleTurn
from entrolab.rollout.oversample import sliced
from entrolab.rollout.strategy import Drawn, Feature, Request, Rollout


@functools.partial(jax.jit, static_argnums=(1, 2))
def _first(tree: Any, votes: int, samples: int) -> Any:
  """The first rows of every group."""
  return jax.tree.map(
      lambda x: grouped(x, votes)[:, :samples].reshape(-1, *x.shape[1:]), tree)


@dataclasses.dataclass(frozen=True)
class Votes(SingleTurn):
  """`votes` samples of every prompt, drawn `size` at a time, of which the first G stay.

  Columns [B]: cluster, classes of equal answers among all votes, -1 without an answer; elected,
  whether a row's class has most of all votes, ties to the answer that appears first. Raises
  ValueError for fewer votes than samples.
  """
  votes: int = 64  # samples of a prompt that vote
  size: int = 16  # of them in one call of the sampler
  silent: bool = False  # rows without an answer are a class like any other, as in the official code
  columns = ("cluster", "elected")

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also refills: whether a group has a learning signal is known by labels alone."""
    return {**super().unsupported,
            "refills": "votes have no labels to find a learning signal by; set sampling.refills=0"}

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified rows of one step; `sampled` counts those that only voted, too."""
    samples = request.sampling.samples
    if samples > self.votes:
      raise ValueError(f"sampling.samples={samples} of votes={self.votes}: at most all of them")
    prompted = engine.prompted(request.next_prompts())
    voters = sliced(engine, request, prompted, self.votes, self.size)
    voted = engine.groups.arrays_of_lead(lambda: {
        "cluster": classes(engine.task, engine.texts(voters.samples, prompted), self.votes)})
    cluster = voted["cluster"]
    agreement = ttrl.agreement(jnp.asarray(cluster), size=self.votes, silent=self.silent)
    elected = np.asarray(agreement) > 0
    # a scalar is no row, and does not go through the choice of rows
    keys, rows = _first((voters.keys, dataclasses.replace(voters.samples, steps=None)),
                        self.votes, samples)
    rows = dataclasses.replace(rows, steps=voters.samples.steps)
    rollout = engine.judged(Drawn(prompted, keys, rows))
    first = lambda x: engine.place(x.reshape(-1, self.votes)[:, :samples].reshape(-1))
    batch = rollout.batch.replace(cluster=first(cluster), elected=first(elected))
    return dataclasses.replace(rollout, batch=batch,
                               sampled=rollout.sampled // samples * self.votes)
