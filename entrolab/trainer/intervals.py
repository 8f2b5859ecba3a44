"""95 % intervals of means over problems, and of the difference of two means over the same problems.

A mean is of shares, such as pass@k of every problem: its interval is Wilson's score interval, which
stays in [0, 1]. Rows of one question count together, so that a repeated question is no further
evidence. A difference is paired by problem.
"""

import collections
import math
from collections.abc import Hashable, Sequence

import numpy as np

Z = 1.959964  # of a normal distribution, 95 % between -Z and Z
Interval = tuple[float, float, float]  # (estimate, low, high)


def interval(values: np.ndarray, questions: Sequence[Hashable] | None = None, most: float = 1.0
             ) -> Interval:
  """(mean, low, high) of values in [0, most], one a problem; all NaN where no value is known.

  With p = mean / most and n questions of independent results,

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

  (Wilson, 1927). Where values are shares, or questions repeat, n is the number of independent
  results of 0 and 1 whose mean has the variance of this one, clustered by question (Dean and
  Pagano, 2015, section 2.2). NaN is left out. questions: of every value; None: all different.
  """
  known = ~np.isnan(values)
  shares = values[known] / most
  if not len(shares):
    return math.nan, math.nan, math.nan
  p = min(max(float(shares.mean()), 0.0), 1.0)
  n = effective(shares, _of(questions, known))
  scale = 1.0 + Z * Z / n
  centre = (p + Z * Z / (2 * n)) / scale
  half = Z / scale * math.sqrt(p * (1.0 - p) / n + Z * Z / (4 * n * n))
  # the interval holds its mean and ends at 0 or 1 with it; rounding must not say otherwise
  low, high = min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p)
  return p * most, low * most, high * most


def effective(shares: np.ndarray, questions: Sequence[Hashable]) -> float:
  """How many independent results of 0 and 1 have a mean as certain as that of these shares.

  p (1 - p) / V, V the variance of the mean: C / (C - 1) sum_c (sum_{i in c} (x_i - p))^2 / n^2 over
  the C questions. Different questions with results of 0 and 1 are just n; what does not vary tells
  nothing of V and counts as C; a single question counts as 1.
  """
  deviations = _by_question(shares - shares.mean(), questions)
  count = len(deviations)
  if count == len(shares) and set(np.unique(shares)) <= {0.0, 1.0}:
    return float(count)
  if count == 1:
    return 1.0
  variance = count / (count - 1) * float((deviations ** 2).sum()) / len(shares) ** 2
  p = float(shares.mean())
  if variance <= 1e-12 * p * (1.0 - p):
    return float(count)
  return max(p * (1.0 - p) / variance, 1.0)


def change(before: np.ndarray, after: np.ndarray, questions: Sequence[Hashable] | None = None,
           most: float = 1.0) -> Interval:
  """(after - before, low, high) of the means over the same problems; stays in [-most, most].

  With intervals [l_1, u_1] and [l_2, u_2] of the means p_1 and p_2, and f their correlation over
  questions, low is p_2 - p_1 - sqrt(a^2 - 2 f a b + b^2) of a = p_2 - l_2 and b = u_1 - p_1; high
  likewise (Newcombe, 1998, method 10, with Wilson's intervals; for correlated means in general Zou
  and Donner, 2008). A problem that either lacks (NaN) is left out.
  """
  known = ~(np.isnan(before) | np.isnan(after))
  if not known.any():
    return math.nan, math.nan, math.nan
  groups = _of(questions, known)
  first, low_1, high_1 = interval(before[known], groups, most)
  second, low_2, high_2 = interval(after[known], groups, most)
  x, y = (_by_question(v[known] - v[known].mean(), groups) for v in (before, after))
  spread = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
  correlation = min(max(float((x * y).sum()) / spread, -1.0), 1.0) if spread > 0 else 0.0

  def reach(a: float, b: float) -> float:
    return math.sqrt(max(a * a - 2.0 * correlation * a * b + b * b, 0.0))

  found = second - first
  return (found, found - reach(second - low_2, high_1 - first),
          found + reach(high_2 - second, first - low_1))


def _of(questions: Sequence[Hashable] | None, known: np.ndarray) -> list[Hashable]:
  """The questions of the known values."""
  names = range(len(known)) if questions is None else questions
  return [name for name, there in zip(names, known, strict=True) if there]


def _by_question(deviations: np.ndarray, questions: Sequence[Hashable]) -> np.ndarray:
  """Their sum for every question."""
  sums: dict[Hashable, float] = collections.defaultdict(float)
  for name, value in zip(questions, deviations, strict=True):
    sums[name] += float(value)
  return np.asarray(list(sums.values()))
