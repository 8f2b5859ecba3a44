"""Gates and pacing: when they move, how far, and that they never move further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import aggregate, control
from entrolab.methods import grpo, ppo
from entrolab.objective import Objective, Penalty, term


def rates(controller, values, name="term/aggregate.right"):
  """The states after each success rate."""
  state, seen = controller.init(), []
  for value in values:
    state = controller.update(state, {name: jnp.asarray(value, jnp.float32)})
    seen.append(state)
  return seen


def test_a_gate_rises_level_by_level_and_waits_for_success():
  gate = control.Gate(most=3, above=0.6, memory=0.5)
  levels = [float(s["level"]) for s in rates(gate, [1.0, 1.0, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0])]
  # running means 0.5, 0.75 up, 0.35, 0.525, 0.6125 up, ... and three is the most
  assert levels == [1, 2, 2, 2, 3, 3, 3, 3, 3]
  assert {float(s["level"]) for s in rates(gate, [0.59] * 50)} == {1.0}
  assert float(control.Gate(most=7, start=4).init()["level"]) == 4.0


def test_the_gate_sees_the_success_rate_through_a_penalty_of_weight_zero():
  seen = Penalty(0.0, term(aggregate.right), scale=term(aggregate.row_mean))
  objective = Objective(reward=term(grpo.outcome), surrogate=term(ppo.clipped_ratio),
                        advantage=term(grpo.group_advantage, size=4), penalties=(seen,),
                        control=(control.Gate(most=2),))
  rng = np.random.default_rng(0)
  verdict = jnp.asarray([1, 0, -1, 1, 0, 1, 1, 0], jnp.int32)
  mask = jnp.asarray(np.arange(6)[None] < rng.integers(1, 7, (8, 1)))
  logp = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
  columns = dict(verdict=verdict, mask=mask, logp=logp, old_logp=logp, adv=logp,
                 rewards=verdict.astype(jnp.float32), entropy=-logp)
  loss, metrics = objective.loss(columns)
  assert abs(float(metrics["term/aggregate.right"]) - 4 / 7) < 1e-6  # unknown is neither
  assert float(loss) == float(metrics["term/ppo.clipped_ratio"])


def kl(a, b):
  return float(control.gamma_kl(*(tuple(jnp.asarray(x, jnp.float32) for x in p) for p in (a, b))))


def test_the_kl_of_gammas_is_that_of_their_densities():
  x = np.linspace(1e-4, 60.0, 600_001)
  gammaln = lambda k: float(jax.scipy.special.gammaln(k))
  log = lambda k, r: k * np.log(r) - gammaln(k) + (k - 1) * np.log(x) - r * x
  for a, b in (((2.0, 1.0), (3.0, 2.0)), ((4.0, 3.0), (1.5, 0.5)), ((1.0, 2.0), (1.0, 2.0))):
    p, q = log(*a), log(*b)
    want = (np.exp(p) * (p - q)).sum() * (x[1] - x[0])
    assert abs(kl(a, b) - want) < 2e-3


def pair(state):
  return float(state["temperature_shape"]), float(state["temperature_rate"])


def test_a_paced_temperature_moves_by_its_bound_until_it_arrives():
  paced = control.Paced(start=(4.0, 2.0), target=(30.0, 60.0), kl=0.1, above=0.5)
  seen = [paced.init(), *rates(paced, [0.5] * 60)]
  steps = [kl(pair(b), pair(a)) for a, b in zip(seen, seen[1:], strict=False)]
  last = next(i for i, s in enumerate(seen) if np.allclose(pair(s), paced.target, rtol=1e-4))
  assert 3 < last < 60
  np.testing.assert_allclose(steps[:last - 1], 0.1, rtol=2e-2)  # at the bound on its way
  assert max(steps) <= 0.1 * 1.02 and max(steps[last:]) < 1e-4
  temperatures = [float(s["temperature"]) for s in seen]
  assert temperatures[0] == 2.0 and abs(temperatures[-1] - 0.5) < 1e-4
  assert all(a >= b for a, b in zip(temperatures, temperatures[1:], strict=False))
  held = rates(paced, [0.49] * 5)
  assert {pair(s) for s in held} == {pair(paced.init())}


@pytest.mark.parametrize("start, target", [((2.0, 1.0), (5.0, 10.0)), ((9.0, 3.0), (2.0, 4.0))])
def test_a_paced_step_is_the_nearest_point_to_the_target_within_the_bound(start, target):
  """Against a search over all gamma distributions."""
  paced = control.Paced(start=start, target=target, kl=0.05)
  new = pair(rates(paced, [1.0])[0])
  shapes, ratios = np.meshgrid(np.geomspace(0.3, 3.0, 400) * start[0],
                               np.geomspace(0.3, 3.0, 400) * start[1], indexing="ij")
  spread = lambda p: tuple(jnp.full(shapes.shape, x, jnp.float32) for x in p)
  grid = jnp.asarray(shapes, jnp.float32), jnp.asarray(ratios, jnp.float32)
  to_old, to_target = (np.asarray(control.gamma_kl(grid, spread(p))) for p in (start, target))
  best = to_target[to_old <= 0.05].min()
  assert kl(new, start) <= 0.0502 and kl(new, target) <= best + 1e-3
