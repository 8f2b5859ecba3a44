"""COND-ENTROPY: how much each reasoning step lowers a reader's entropy over the answer.

Measuring Reasoning Utility in LLMs via Conditional Entropy Reduction, Guo (arXiv:2508.20395,
2025). Official code: none found; formulas read in a description.
Acts on: analysis.  State: none.
Differs from the paper, as far as known: nothing. `slope` and `falling_share` are additions.

A statistic of nothing (an answer without tokens, a chain without steps) is defined as 0, and so is
its gradient: one empty member must not turn the mean over all others into NaN. Leave such chains
out of a ranking.
"""

import jax.numpy as jnp
import numpy as np

from entrolab import vocab
from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Int, real


@checked
def trajectory(entropy: Float[Array, "C K M"], answer: Bool[Array, "C M"],
               steps: Int[Array, " C"]) -> Float[Array, "C K"]:
  """H_k: mean entropy over the answer's tokens after k = 0, 1, ... steps, nats; 0 beyond the last.

  entropy: over the vocabulary, with the answer's tokens given (or minus their log-probs, for the
  cross-entropy); answer: the answer's tokens; steps: the number of steps of each chain.
  """
  on = answer[:, None]
  mean = jnp.where(on, entropy, 0.0).sum(2) / jnp.maximum(real(on).sum(2), 1.0)
  return jnp.where(_inside(mean.shape[1], steps), mean, 0.0)


@checked
def token_entropy(answer_logits: Float[Array, "C K M V"]) -> Float[Array, "C K M"]:
  """Nats at every position of the answer."""
  return vocab.entropy(answer_logits)


@checked
def information_gain(path: Float[Array, "C K"], steps: Int[Array, " C"]) -> Float[Array, "C k"]:
  """IG_k = H_{k-1} - H_k of each step; 0 beyond the last. Sums to H_0 - H_K."""
  return jnp.where(_inside(path.shape[1], steps)[:, 1:], path[:, :-1] - path[:, 1:], 0.0)


@checked
def total_reduction(path: Float[Array, "C K"], steps: Int[Array, " C"]) -> Float[Array, " C"]:
  """H_0 - H_K: an estimate of the information between answer and chain."""
  return path[:, 0] - jnp.take_along_axis(path, steps[:, None], axis=1)[:, 0]


@checked
def slope(path: Float[Array, "C K"], steps: Int[Array, " C"]) -> Float[Array, " C"]:
  """Least squares of H_k on k, nats a step; 0 for a chain without steps."""
  on = _inside(path.shape[1], steps)
  k = jnp.where(on, real(jnp.arange(path.shape[1]))[None], 0.0)
  count = real(on).sum(1, keepdims=True)
  centred = jnp.where(on, k - k.sum(1, keepdims=True) / count, 0.0)
  spread = jnp.square(centred).sum(1)  # 1/2 or more with a step, 0 without
  return (centred * path).sum(1) / jnp.where(steps > 0, spread, 1.0)


@checked
def falling_share(path: Float[Array, "C K"], steps: Int[Array, " C"]) -> Float[Array, " C"]:
  """Fraction of the steps that lower the entropy; 0 for a chain without steps."""
  falls = real(information_gain(path, steps) > 0.0).sum(1)
  return falls / jnp.maximum(real(steps), 1.0)


def aligned(path: np.ndarray, grid: np.ndarray, *, cubic: bool = False) -> np.ndarray:
  """H_0 ... H_K of a chain on a grid of k / K in [0, 1], linear or by a not-a-knot spline.

  A spline needs K >= 3, else the interpolation is linear; it may overshoot below 0.
  """
  path = np.asarray(path, np.float64)
  x = np.linspace(0.0, 1.0, len(path))
  return _spline(x, path, grid) if cubic and len(path) > 3 else np.interp(grid, x, path)


def _spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
  """Cubic through equally spaced points; third derivatives continuous at the ends' inner knots."""
  n = len(x)
  h = x[1] - x[0]
  system = np.zeros((n, n))  # the unknowns are the second derivatives at the points
  right = np.zeros(n)
  for i in range(1, n - 1):  # continuity of the first derivative
    system[i, i - 1:i + 2] = 1.0, 4.0, 1.0
    right[i] = 6.0 * (y[i - 1] - 2.0 * y[i] + y[i + 1]) / h**2
  system[0, :3] = system[-1, -3:] = 1.0, -2.0, 1.0  # continuity of the third, next to the ends
  second = np.linalg.solve(system, right)
  i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, n - 2)
  b = (at - x[i]) / h
  a = 1.0 - b
  bend = ((a**3 - a) * second[i] + (b**3 - b) * second[i + 1]) * h**2 / 6.0
  return a * y[i] + b * y[i + 1] + bend


def _inside(length: int, steps: Array) -> Array:
  """[C, length]: positions 0 to the number of steps."""
  return jnp.arange(length)[None] <= steps[:, None]
