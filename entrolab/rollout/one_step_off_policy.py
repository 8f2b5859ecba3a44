"""The rows of a run, step by step: drawn when a step asks for them, or one step ahead.

A strategy with `begin` draws without looking at verdicts, so that devices and host need not wait
for each other: rows are scored while the host verifies them. With sampling.ahead=1 the rows of step
k + 1 are begun before those of step k are verified and learned from. They are of the policy before
the updates of step k: one step old, never older. A checkpoint holds them and the data position
before their prompts, so that a resumed run goes on with the very same rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from entrolab import sharding
from entrolab.experiment import Experiment
from entrolab.rollout import decode, plain

LEAF = "ahead."  # before the names of what a checkpoint holds


class Draws:
  """What has been begun and not been asked for yet. data: the run's iterator of prompts."""

  def __init__(self, experiment: Experiment, engine: plain.Sampler, data: Any):
    self.strategy, self.sampling = experiment.rollout, experiment.sampling
    self.engine, self.data = engine, data
    self.waiting: plain.Drawn | None = None
    self.before = b""  # the data position before the prompts of what waits

  @property
  def position(self) -> bytes:
    """Of the data, before the prompts of the first step that was not asked for."""
    return self.before if self.waiting else self.data.get_state()

  def take(self, ask: Callable[[], plain.Request]) -> plain.Drawn | None:
    """The rows of a step, not verified; None where its strategy draws by verdicts."""
    if self.sampling.refills or not hasattr(self.strategy, "begin"):
      return None
    drawn = self.waiting or self.strategy.begin(self.engine, ask())
    self.waiting = None
    return drawn

  def go_ahead(self, ask: Callable[[], plain.Request]) -> None:
    """Begins the rows of the step after it, where the experiment wants that."""
    if self.sampling.ahead:
      self.before = self.data.get_state()
      self.waiting = self.strategy.begin(self.engine, ask())

  def leaves(self) -> dict[str, jax.Array]:
    """What a checkpoint holds of the rows that wait."""
    out = self.waiting.out if self.waiting else None
    fields = dataclasses.fields(out) if out else ()
    return {LEAF + f.name: x for f in fields if (x := getattr(out, f.name)) is not None}

  def resume(self, key: jax.Array, step: int, position: bytes, kept: Mapping[str, np.ndarray]
             ) -> dict[str, np.ndarray]:
    """Goes on after `step` steps from what a checkpoint holds; gives back what is not `leaves`."""
    self.data.set_state(position)
    mine = {n.removeprefix(LEAF): x for n, x in kept.items() if n.startswith(LEAF)}
    if mine:
      mesh = self.engine.mesh
      place = lambda x: sharding.put(x, sharding.rows(mesh) if x.ndim else sharding.whole(mesh))
      asked, self.before = self.engine.asked(next(self.data)), position
      keys = plain.row_keys(key, np.int32(step), asked.ids, self.sampling.samples)
      self.waiting = plain.Drawn(asked, keys, decode.Samples(
          **{name: place(x) for name, x in mine.items()}))
    return {name: x for name, x in kept.items() if not name.startswith(LEAF)}
