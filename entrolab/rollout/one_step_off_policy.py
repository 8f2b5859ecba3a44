"""The rows of a run, step by step: drawn when a step needs them, or one step ahead.

A strategy that supports "ahead" draws without looking at verdicts, so that devices and host need
not wait for each other: rows are scored while the host verifies them. With sampling.ahead=1 the
rows of step k + 1 are begun before those of step k are verified and learned from. They are of the
policy before the updates of step k: one step old, never older. A checkpoint holds them and the data
position before their prompts, so that a resumed run goes on with the very same rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from entrolab import sharding
from entrolab.experiment import Experiment
from entrolab.rollout.decode import Samples
from entrolab.rollout.engine import Engine, row_keys
from entrolab.rollout.strategy import Drawn, Request

LEAF = "ahead."  # begins the names of what a checkpoint holds


class Draws:
  """The rows that have been begun and no step has taken yet."""

  def __init__(self, experiment: Experiment, engine: Engine, data: Any):
    self.strategy, self.sampling = experiment.rollout, experiment.sampling
    self.engine = engine
    self.data = data  # the run's iterator of prompts
    self.waiting: Drawn | None = None  # rows of the next step
    self.before = b""  # the data position before the prompts of what waits

  @property
  def position(self) -> bytes:
    """Of the data, before the prompts of the first step that has not been taken."""
    return self.before if self.waiting else self.data.get_state()

  def take(self, request: Callable[[], Request]) -> Drawn | None:
    """The rows of a step, not verified; None where its strategy draws by verdicts.

    request: what a step without waiting rows asks for.
    """
    if self.sampling.refills or "ahead" in self.strategy.unsupported:
      return None
    drawn = self.waiting or self.strategy.begin(self.engine, request())
    self.waiting = None
    return drawn

  def go_ahead(self, request: Callable[[], Request]) -> None:
    """Begins the rows of the step after the one taken, where the experiment wants that."""
    if self.sampling.ahead:
      self.before = self.data.get_state()
      self.waiting = self.strategy.begin(self.engine, request())

  def leaves(self) -> dict[str, jax.Array]:
    """What a checkpoint holds of the rows that wait."""
    if self.waiting is None:
      return {}
    samples = self.waiting.samples
    arrays = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
    return {LEAF + name: x for name, x in arrays.items() if x is not None}

  def resume(self, key: jax.Array, step: int, position: bytes, kept: Mapping[str, np.ndarray]
             ) -> dict[str, np.ndarray]:
    """Goes on after `step` steps from what a checkpoint holds; gives back what is not `leaves`."""
    self.data.set_state(position)
    arrays = {n.removeprefix(LEAF): x for n, x in kept.items() if n.startswith(LEAF)}
    if arrays:
      mesh = self.engine.mesh
      place = lambda x: sharding.put(x, sharding.rows(mesh) if x.ndim else sharding.whole(mesh))
      # prompts and keys are functions of the data position and the step: no checkpoint has them
      prompted, self.before = self.engine.prompted(next(self.data)), position
      keys = row_keys(key, np.int32(step), prompted.ids, self.sampling.samples)
      placed: Any = {name: place(x) for name, x in arrays.items()}
      self.waiting = Drawn(prompted, keys, Samples(**placed))
    return {name: x for name, x in kept.items() if not name.startswith(LEAF)}
