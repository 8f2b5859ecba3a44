"""What changes across steps: a small state with `init`, `begin` and `update`.

A controller lives in the train state and in the checkpoint, as named values that terms read like
columns and penalties take as their weight. It advances once per optimiser step from the reduced
metrics, never inside the loss: there it would move once per micro-batch.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from entrolab.typing import Array

State = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Controller:
  """Base: no values, never moves."""

  def init(self) -> State:
    """The named values at step 0."""
    return {}

  def begin(self, state: State, means: Mapping[str, Array]) -> State:
    """The state before the first update.

    means: of the first rollout at the initial policy, of every penalty with an outer function.
    """
    del means
    return state

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    """The next state from the metrics of one optimiser step."""
    del metrics
    return state


@dataclasses.dataclass(frozen=True)
class Gate(Controller):
  """`level`, an integer that grows by 1 whenever the running success rate reaches a bound.

  rate <- memory rate + (1 - memory) success, from 0 at every level.
  """
  most: int  # the last level
  start: int = 1  # the first level
  above: float = 0.6  # the success rate that opens the next level
  memory: float = 0.5  # share of the old rate in the new one
  metric: str = "term/aggregate.right"  # the success of an optimiser step

  def init(self) -> State:
    return {"level": jnp.asarray(self.start, float), "gate_rate": jnp.zeros((), float)}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    success = metrics[self.metric].astype(float)
    rate = self.memory * state["gate_rate"] + (1.0 - self.memory) * success
    up = (rate >= self.above) & (state["level"] < self.most)
    # a rate earned at an easier level says nothing of the next one: it starts again from 0
    return {"level": state["level"] + jnp.where(up, 1.0, 0.0).astype(float),
            "gate_rate": jnp.where(up, 0.0, rate).astype(float)}


def gamma_kl(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
  """KL(a || b) of two gamma distributions (shape, rate), nats."""
  (k, r), (l, q) = a, b
  return ((k - l) * digamma(k) - gammaln(k) + gammaln(l) + l * jnp.log(r / q)
          + k * (q - r) / r)


@dataclasses.dataclass(frozen=True)
class Paced(Controller):
  """`temperature`, the mean of a gamma distribution that moves towards a target distribution.

  The teacher of QARL (arXiv:2311.01642): min KL(new || target) subject to KL(new || old) <= kl and
  success >= above. Gamma distributions are an exponential family, so the minimum is on the line
  between the natural parameters of old and target, at the bound: found by bisection, exactly. The
  paper predicts success under the new distribution by importance weights; here the success that
  was measured decides.
  """
  start: tuple[float, float]  # (shape, rate) of the gamma distribution, whose mean is shape / rate
  target: tuple[float, float]  # (shape, rate)
  kl: float = 0.05  # most nats that an update moves the distribution
  above: float = 0.5  # least success rate for which it moves
  metric: str = "term/aggregate.right"  # the success of an optimiser step

  def init(self) -> State:
    return self._state(*(jnp.asarray(x, float) for x in self.start))

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    old = state["temperature_shape"], state["temperature_rate"]
    # the distribution at a share of the way to the target, on the line of natural parameters
    at = lambda share: tuple(o + share * (t - o) for o, t in zip(old, self.target, strict=True))

    def halve(_, bounds):  # the KL to old grows along the line
      low, high = bounds
      middle = 0.5 * (low + high)
      fits = gamma_kl(at(middle), old) <= self.kl
      return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(old[0]), jnp.ones_like(old[0])))
    # where the target itself is within the bound, bisection would stop just short of it
    share = jnp.where(gamma_kl(at(1.0), old) <= self.kl, 1.0, low)
    share = jnp.where(metrics[self.metric] >= self.above, share, 0.0).astype(old[0].dtype)
    return self._state(*at(share))

  def _state(self, shape: Array, rate: Array) -> State:
    return {"temperature": shape / rate, "temperature_shape": shape, "temperature_rate": rate}


def init(controllers: tuple[Controller, ...]) -> State:
  """All named values; raises TypeError when two controllers name the same one."""
  state: State = {}
  for controller in controllers:
    values = controller.init()
    twice = sorted(values.keys() & state.keys())
    if twice:
      raise TypeError(f"{controller} names {twice[0]!r}, which another controller names already")
    state.update(values)
  return state


def _each(controllers, state: State, step) -> State:
  """The state after step(controller, its values) of every controller; values of none stay."""
  moved = dict(state)
  for controller in controllers:
    moved.update(step(controller, {name: state[name] for name in controller.init()}))
  return moved


def begin(controllers: tuple[Controller, ...], state: State, means: Mapping[str, Array]) -> State:
  """`begin` of every controller, on its values."""
  return _each(controllers, state, lambda c, values: c.begin(values, means))


def update(controllers: tuple[Controller, ...], state: State,
           metrics: Mapping[str, Array]) -> State:
  """`update` of every controller, on its values."""
  return _each(controllers, state, lambda c, values: c.update(values, metrics))
