"""ENTROPY-LAW: R = -a e^H + b along training, and entropy change as a covariance.

The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models (arXiv:2505.22617,
2025). Official code: PRIME-RL/Entropy-Mechanism-of-RL logs these entropies; no fit is published.
Acts on: analysis.  State: none.
Differs from the paper: nothing known; the fit is linear least squares in e^H, whose optimum is
exact. H of the fit is the mean over rows of their token means (`entropy/sequence`). The one-sample
form of a network's step is in `entropy_change`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float


class Fit(NamedTuple):
  """R = -a e^H + b; every field is NaN if H does not vary."""
  a: float  # slope, in reward per e^nat
  b: float  # the value where e^H vanishes
  ceiling: float  # b - a, the value at H = 0
  rmse: float  # root mean square error of R
  r2: float  # coefficient of determination; NaN if R does not vary

  def predict(self, entropy: np.ndarray) -> np.ndarray:
    """The fitted R at these entropies."""
    return self.b - self.a * np.exp(np.asarray(entropy, np.float64))


def fit(entropy: np.ndarray, reward: np.ndarray) -> Fit:
  """Least squares of reward on e^entropy. Raises ValueError for fewer than three points."""
  x = np.exp(np.asarray(entropy, np.float64))
  r = np.asarray(reward, np.float64)
  if len(x) < 3:
    raise ValueError(f"a fit needs at least 3 points, not {len(x)}")
  spread = x.var()
  if spread <= 1e-12 * x.mean() ** 2:
    return Fit(*[float("nan")] * 5)
  a = -((x - x.mean()) * (r - r.mean())).mean() / spread
  b = r.mean() + a * x.mean()
  error = r - (b - a * x)
  total = np.square(r - r.mean()).sum()
  r2 = 1.0 - np.square(error).sum() / total if total else float("nan")
  rmse = np.sqrt(np.square(error).mean())
  return Fit(float(a), float(b), float(b - a), float(rmse), float(r2))


def prefix(entropy: np.ndarray, reward: np.ndarray, *, fraction: float = 0.15
           ) -> tuple[Fit, int, float, float]:
  """Extrapolation from the first points, at least three: (their fit, their number, RMSE on the
  other points, |error| at the last point). The RMSE is NaN where no other point is left."""
  entropy, reward = np.asarray(entropy), np.asarray(reward)
  count = max(3, int(np.ceil(fraction * len(entropy))))
  early = fit(entropy[:count], reward[:count])
  error = reward - early.predict(entropy)
  rest = error[count:]
  rmse = float(np.sqrt(np.square(rest).mean())) if rest.size else float("nan")
  return early, count, rmse, float(abs(error[-1]))


@checked
def covariance(probs: Float[Array, "S A"], x: Float[Array, "S A"],
               y: Float[Array, "S A"]) -> Float[Array, " S"]:
  """Cov_{a ~ probs}(x, y) of each state."""
  mean = lambda v: (probs * v).sum(-1)
  return mean(x * y) - mean(x) * mean(y)


@checked
def entropy_slope(logits: Float[Array, "S A"]) -> Float[Array, "S A"]:
  """dH / dz_a = -pi_a (log pi_a + H)."""
  logp = jax.nn.log_softmax(logits)
  p = jnp.exp(logp)
  return -p * (logp - (p * logp).sum(-1, keepdims=True))


@checked
def policy_gradient_change(logits: Float[Array, "S A"], adv: Float[Array, "S A"], *,
                           natural: bool = False) -> Float[Array, " S"]:
  """dH / eta of one exact step: -Cov(log pi, pi A), or -Cov(log pi, A) for the natural gradient."""
  logp = jax.nn.log_softmax(logits)
  p = jnp.exp(logp)
  return -covariance(p, logp, adv if natural else p * adv)


@checked
def group_covariance(sequence_logp: Float[Array, "P G"],
                     adv: Float[Array, "P G"]) -> Float[Array, " P"]:
  """Population covariance, over the group, of length-normalised log-prob and advantage."""
  centre = lambda x: x - x.mean(1, keepdims=True)
  return (centre(sequence_logp) * centre(adv)).mean(1)


@checked
def token_covariance(logp: Float[Array, "B T"], adv: Float[Array, "B T"],
                     mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
  """(logp - mean)(A - mean) over all valid tokens of the batch; 0 outside."""
  centre = lambda x: x - masked_mean(x, mask)
  return jnp.where(mask, centre(logp) * centre(adv), 0.0)
