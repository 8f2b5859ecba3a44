"""ALIGN-ASYMPTOTICS: exact frontiers of reward against KL: tilting, and best of N.

Asymptotics of Language Model Alignment, Yang et al. (arXiv:2404.01730, 2024). Official code: none
found; the formulas are standard and enumerate finite outcomes exactly.
Acts on: analysis.  State: none.
Differs from the paper: nothing known; only its abstract was read. Nats; float64 on the host.
"""

from collections.abc import Callable

import numpy as np

DECIMALS = 10  # sums that agree to this many, in units of the largest reward, are one outcome
ROUNDING = 1e-12  # by which share the KL of the largest rewards may be missed


def log_partition(p: np.ndarray, r: np.ndarray, w: float) -> float:
  """Lambda(w) = ln sum p e^{w r}."""
  z = np.log(p) + w * r
  return float(z.max() + np.log(np.exp(z - z.max()).sum()))


def tilt(p: np.ndarray, r: np.ndarray, w: float) -> np.ndarray:
  """phi_w = p e^{w r} / Z: the optimum of E r - KL / w; w = inf is p on the largest rewards."""
  if np.isinf(w):
    top = np.where(r == r[p > 0].max(), p, 0.0)  # of the outcomes that occur
    return top / top.sum()
  z = np.log(p) + w * r
  z = np.exp(z - z.max())
  return z / z.sum()


def kl(q: np.ndarray, p: np.ndarray) -> float:
  """KL(q || p); 0 ln 0 = 0."""
  on = q > 0
  return float((q[on] * (np.log(q[on]) - np.log(p[on]))).sum())


def tilt_kl(p: np.ndarray, r: np.ndarray, w: float) -> float:
  """KL(phi_w || p) = w Lambda'(w) - Lambda(w), increasing in w >= 0."""
  return kl(tilt(p, r, w), p)


def weight_of_kl(p: np.ndarray, r: np.ndarray, budget: float) -> float:
  """The w with KL(phi_w || p) = budget, nats; inf if the largest rewards are within the budget."""
  if budget >= tilt_kl(p, r, np.inf) * (1.0 - ROUNDING):
    return float("inf")
  return _root(lambda w: tilt_kl(p, r, w) - budget)


def weight_of_reward(p: np.ndarray, r: np.ndarray, target: float) -> float:
  """The w, of either sign, with Lambda'(w) = target. Raises ValueError outside (min r, max r)."""
  if not r.min() < target < r.max():
    raise ValueError(f"target={target}: must be inside ({r.min()}, {r.max()})")
  excess = lambda w: float((tilt(p, r, w) * r).sum()) - target
  if excess(0.0) <= 0:
    return _root(excess)
  return -_root(lambda w: -excess(-w))


def best_of(p: np.ndarray, r: np.ndarray, n: int) -> np.ndarray:
  """Best of n draws, ties uniform: p(y) / P(r = r(y)) (F(r(y))^n - F(r(y)-)^n), 0 where p is."""
  at = lambda u: p[r == u].sum()  # P(r = u)
  below = lambda u: p[r < u].sum()  # F(u-)
  gain = {u: ((below(u) + at(u)) ** n - below(u) ** n) / at(u) for u in np.unique(r[p > 0])}
  return p * np.asarray([gain.get(u, 0.0) for u in r])


def best_of_kl_bound(n: int) -> float:
  """KL(best of n || p) <= ln n - (n - 1) / n, arXiv:2401.01879."""
  return float(np.log(n) - (n - 1) / n)


def sum_law(p: np.ndarray, r: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
  """(values, probabilities) of the total reward of m independent tokens, ascending."""
  unit = float(np.abs(r).max()) or 1.0  # rounding of a sum is a share of what is added up
  law = {0.0: (0.0, 1.0)}  # total in units, rounded -> (total, probability)
  for _ in range(m):
    longer: dict[float, tuple[float, float]] = {}
    for total, q in law.values():
      for token_p, token_r in zip(p, r, strict=True):
        # the sum itself goes on: sums of rounded sums would drift apart
        longer_total = total + float(token_r)
        key = round(longer_total / unit, DECIMALS)
        first, so_far = longer.get(key, (longer_total, 0.0))
        longer[key] = first, so_far + q * float(token_p)
    law = longer
  ordered = sorted(law.values())
  return np.asarray([v for v, _ in ordered]), np.asarray([q for _, q in ordered])


def memoryless(p: np.ndarray, r: np.ndarray, m: int, budget: float) -> tuple[float, ...]:
  """Best of N = floor(e^{m budget}) against the tilt of KL m budget, for m independent tokens:
  (m, N, E R_bon / m, KL(bon || p) / m, KL(bon || tilt) / m, E R_tilt / m)."""
  n = int(np.floor(np.exp(m * budget)))
  w = weight_of_kl(p, r, budget)
  values, law = sum_law(p, r, m)
  best = best_of(law, values, n)
  to_p = kl(best, law)
  # three-point form: the tilt of a sum is p e^{w R} / Z^m
  to_tilt = to_p - w * float((best * values).sum()) + m * log_partition(p, r, w)
  return (m, n, float((best * values).sum()) / m, to_p / m, to_tilt / m,
          float((tilt(p, r, w) * r).sum()))


def rate(p: np.ndarray, r: np.ndarray, w: float, target: float) -> float:
  """Large-deviation rate of the mean reward under phi_w: KL(phi_{w*} || phi_w), Lambda'(w*) = t."""
  other = weight_of_reward(p, r, target)
  return (other - w) * target - (log_partition(p, r, other) - log_partition(p, r, w))


def _root(f: Callable[[float], float]) -> float:
  """The root of an increasing function on [0, inf), by bisection to the last bit."""
  high = 1.0
  while f(high) < 0:
    high *= 2.0
  low = 0.0
  for _ in range(200):
    middle = 0.5 * (low + high)
    if f(middle) < 0:
      low = middle
    else:
      high = middle
  return 0.5 * (low + high)
