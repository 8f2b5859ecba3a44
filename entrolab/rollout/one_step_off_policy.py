"""The rows of a run, step by step: drawn when a step needs them, or one step ahead.

Up to two requests are in flight at a time.

  this step   A strategy that supports "ahead" dispatches its rows without looking at verdicts: the
              devices compute log-probs of them while the host verifies them.
  next step   With sampling.ahead=1 its rows are dispatched before those of this step are verified
              and learned from. So they are of the policy before the updates of this step: one step
              old, never older.

A checkpoint stores the rows of the next step and the data position before their prompts, so that a
resumed run goes on with the very same rows.
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

PREFIX = "ahead."  # of the names of rows drawn ahead among the leaves of a checkpoint


class RequestsInFlight:
  """The requests whose rows have been dispatched: of the current step, and of the next one."""

  def __init__(self, experiment: Experiment, engine: Engine, data: Any):
    self.strategy, self.sampling = experiment.rollout, experiment.sampling
    self.engine = engine
    self.data = data  # the run's iterator of prompts
    self.ahead: Drawn | None = None  # rows of the next step, not verified
    self.position_before_ahead = b""  # of the data, before the prompts of the rows in `ahead`

  @property
  def position(self) -> bytes:
    """Of the data, before the prompts of the first step whose rows have not been trained on."""
    return self.position_before_ahead if self.ahead else self.data.get_state()

  def rows_of_step(self, request: Callable[[], Request]) -> Drawn | None:
    """The rows of the current step, not verified; None where its strategy draws by verdicts.

    request: makes the request of the step; called only where its rows were not drawn ahead, since
    it reads the next prompts.
    """
    if self.sampling.refills or "ahead" in self.strategy.unsupported:
      return None
    drawn = self.ahead or self.strategy.dispatch(self.engine, request())
    self.ahead = None
    return drawn

  def dispatch_next(self, request: Callable[[], Request]) -> None:
    """Dispatches the rows of the next step, where sampling.ahead=1."""
    if self.sampling.ahead:
      # a resumed run reads the prompts of these rows again, from here
      self.position_before_ahead = self.data.get_state()
      self.ahead = self.strategy.dispatch(self.engine, request())

  def leaves(self) -> dict[str, jax.Array]:
    """What a checkpoint stores of rows drawn ahead, by name."""
    if self.ahead is None:
      return {}
    samples = self.ahead.samples
    arrays = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
    return {PREFIX + name: x for name, x in arrays.items() if x is not None}

  def resume(self, key: jax.Array, step: int, position: bytes, stored: Mapping[str, np.ndarray]
             ) -> dict[str, np.ndarray]:
    """Goes on after `step` steps from what a checkpoint stored; returns what is not `leaves`."""
    self.data.set_state(position)
    arrays = {n.removeprefix(PREFIX): x for n, x in stored.items() if n.startswith(PREFIX)}
    if arrays:
      mesh = self.engine.mesh
      place = lambda x: sharding.put(x, sharding.rows(mesh) if x.ndim else sharding.whole(mesh))
      # prompts and keys are functions of the data position and the step: no checkpoint has them
      prompted, self.position_before_ahead = self.engine.prompted(next(self.data)), position
      keys = row_keys(key, np.int32(step), prompted.ids, self.sampling.samples)
      placed: Any = {name: place(x) for name, x in arrays.items()}
      self.ahead = Drawn(prompted, keys, Samples(**placed))
    return {name: x for name, x in stored.items() if not name.startswith(PREFIX)}
