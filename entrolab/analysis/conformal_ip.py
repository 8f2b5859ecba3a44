"""CONFORMAL-IP: ask the question whose conformal bound on the label's entropy is lowest.

Conformal Information Pursuit for Interactively Guiding Large Language Models (arXiv:2507.03279,
2025). Official code: ryanchankh/Conformal-IP, src/20q.
Acts on: analysis.  State: none.
Differs from the official code: thresholds are its quantile by default (`rank="higher"`), the
textbook's finite-sample rank by `rank="split"`. BITS here, not nats: the bound counts yes-or-no
questions. Everything is host arithmetic in float64; theirs is float32.
"""

from typing import Literal

import numpy as np

CLAMP = 1e-5  # of probabilities in the official entropy
ROUNDING = 1e-6  # by which share a float32 posterior may miss the threshold that it equals


def scores(posteriors: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """-f(y | h) of the true label: [n, C], [n] -> [n]."""
  return -posteriors[np.arange(len(labels)), labels]


def threshold(score: np.ndarray, alpha: float, *,
              rank: Literal["higher", "split"] = "higher") -> float:
  """The (1 - alpha) quantile of calibration scores, or the ceil((n + 1)(1 - alpha))-th smallest:
  infinite when that exceeds n, and without any score. Raises ValueError for alpha outside
  (0, 1)."""
  if not 0.0 < alpha < 1.0:
    raise ValueError(f"threshold(alpha={alpha}): inside (0, 1)")
  if not len(score):
    return float("inf")  # nothing is known: every label is in the set
  if rank == "higher":
    return float(np.quantile(score, 1.0 - alpha, method="higher"))
  at = int(np.ceil((len(score) + 1) * (1.0 - alpha)))
  return float(np.sort(score)[at - 1]) if at <= len(score) else float("inf")


def prediction_set(posteriors: np.ndarray, qhat: float) -> np.ndarray:
  """bool [..., C]: labels with f >= -qhat, up to the rounding of the threshold itself.

  A threshold equals a posterior of the calibration set, which must be inside. Posteriors span many
  orders of magnitude, so that only a share of the threshold is a tolerance.
  """
  return posteriors >= -qhat * (1.0 - ROUNDING)


def bound(sets: np.ndarray, labels: np.ndarray, alpha: float) -> np.ndarray:
  """The bound U of each query [Q], bits, from the sets [Q, n, C] after simulated answers:

  h2(alpha) + (1 - alpha_n) mean_covered log2 |C| + alpha mean_missed log2(classes - |C|), with
  alpha_n = alpha - 1 / (n + 1); an empty mean is 0. labels [n]: those of the simulated answers.
  """
  sets = np.asarray(sets, bool)
  classes = sets.shape[-1]
  size = sets.sum(-1).astype(np.float64)
  covered = np.take_along_axis(sets, np.broadcast_to(labels[None, :, None], (*size.shape, 1)),
                               -1)[..., 0]
  mean = lambda x, on: np.where(on, x, 0.0).sum(1) / np.maximum(on.sum(1), 1)
  log = lambda x: np.log2(np.maximum(x, 1e-300))
  first = -alpha * np.log2(alpha) - (1.0 - alpha) * np.log2(1.0 - alpha)
  alpha_n = alpha - 1.0 / (len(labels) + 1.0)
  return (first + (1.0 - alpha_n) * mean(log(size), covered)
          + alpha * mean(log(classes - size), ~covered))


def expected_entropy(posteriors: np.ndarray, *, clamp: float = CLAMP) -> np.ndarray:
  """Mean over simulated answers of the posterior's entropy [Q], bits; 0 without any answer.

  The criterion of information pursuit. clamp: the least probability that enters.
  """
  p = np.maximum(posteriors, clamp)
  return -(p * np.log2(p)).sum((-1, -2)) / max(p.shape[-2], 1)


def choose(value: np.ndarray, *, slack: float = 0.0) -> int:
  """The query of lowest value; the first of those within `slack` bits of it."""
  return int(np.flatnonzero(value <= value.min() + slack)[0])


def naive_posterior(attributes: np.ndarray, queried: list[int], answers: np.ndarray, *, flip: float,
                    sharpness: float = 1.0) -> np.ndarray:
  """Posterior [C] over classes with binary attributes [C, Q], given answers to some queries.

  queried: the queries; answers: to them, each wrong with probability `flip`; sharpness: exponent of
  an over-confident predictor. Raises ValueError where no class can have given the answers.
  """
  same = attributes[:, queried] == answers[None]
  # about the likeliest class: after many answers every likelihood underflows, and 0 / 0 is NaN
  with np.errstate(divide="ignore"):
    log_likelihood = sharpness * np.log(np.where(same, 1.0 - flip, flip)).sum(1)
  most = log_likelihood.max()
  if not np.isfinite(most):
    raise ValueError(f"naive_posterior(flip={flip}): no class has the answers {answers}")
  likelihood = np.exp(log_likelihood - most)
  return likelihood / likelihood.sum()
