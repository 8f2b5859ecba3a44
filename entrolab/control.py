"""What changes across steps: a small state with `init`, `begin` and `update`.

A controller lives in the train state and in the checkpoint, as named values that terms read like
columns and penalties take as their weight. It advances once per optimiser step from the reduced
metrics, never inside the loss: there it would move once per micro-batch.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from entrolab.typing import Array

State = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Controller:
  """Base: no values, never moves. `reads` lists the metrics that `update` looks at."""

  def init(self) -> State:
    """The named values at step 0."""
    return {}

  def begin(self, state: State, means: Mapping[str, Array]) -> State:
    """Once, before the first update: `means` of the first rollout at the initial policy."""
    del means
    return state

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    """The next state from the metrics of one optimiser step."""
    del metrics
    return state


@dataclasses.dataclass(frozen=True)
class Integral(Controller):
  """coef += rate * (target - entropy), in [low, high]: rises while the entropy is under target.

  target: nats a token; rate: per optimiser step; coef starts at `start`.
  """
  target: float
  rate: float = 1e-3
  start: float = 0.0
  low: float = 0.0
  high: float = 1.0

  def init(self) -> State:
    return {"coef": jnp.asarray(self.start, float)}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    error = self.target - metrics["entropy/exact"].astype(float)
    return {"coef": jnp.clip(state["coef"] + self.rate * error, self.low, self.high)}


def init(controllers: tuple[Controller, ...]) -> State:
  """All named values; raises TypeError when two controllers name the same one."""
  state: State = {}
  for controller in controllers:
    own = controller.init()
    twice = sorted(own.keys() & state.keys())
    if twice:
      raise TypeError(f"{controller} names {twice[0]!r}, which another controller holds already")
    state.update(own)
  return state


def _each(controllers, state: State, step) -> State:
  moved = dict(state)
  for controller in controllers:
    moved.update(step(controller, {name: state[name] for name in controller.init()}))
  return moved


def begin(controllers: tuple[Controller, ...], state: State, means: Mapping[str, Array]) -> State:
  """`begin` of every controller, on its own values."""
  return _each(controllers, state, lambda c, own: c.begin(own, means))


def update(controllers: tuple[Controller, ...], state: State,
           metrics: Mapping[str, Array]) -> State:
  """`update` of every controller, on its own values."""
  return _each(controllers, state, lambda c, own: c.update(own, metrics))
