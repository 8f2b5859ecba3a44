"""UTILITY-DUALITY: softmax outputs as ordinal utilities, and decisions on top of them.

Utility-Probability Duality of Neural Networks, Huang and Fei (arXiv:2305.14859, 2023). Official
code: none found; only the abstract was read. The paper's own equation from utilities to
probabilities was NOT seen: `candidate_probs` is our own definition, and labelled so.
Acts on: analysis.  State: none.
Differs from the paper: see above; `learn` alone is implied by its abstract.
"""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Float, Int


def learn(utility: Float[Array, "B V"], observed: Int[Array, " B"], *,
          rate: float) -> Float[Array, "B V"]:
  """One step of maximum likelihood on a table: u + rate (1[y] - softmax u); its sum stays."""
  return utility + rate * (jax.nn.one_hot(observed, utility.shape[1], dtype=utility.dtype)
                           - jax.nn.softmax(utility))


def sequence_utility(logits: Float[Array, "C L V"], tokens: Int[Array, "C L"],
                     length: Int[Array, " C"], *, raw: bool = False) -> Float[Array, " C"]:
  """sum_t log softmax(u)(y_t) of a candidate; raw: of the logits themselves, which hold an
  arbitrary constant a prefix."""
  values = logits if raw else jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(values, tokens[..., None], -1)[..., 0]
  return jnp.where(jnp.arange(tokens.shape[1])[None] < length[:, None], own, 0.0).sum(1)


def candidate_probs(utility: Float[Array, " C"], tau: Float[Array, " k"]) -> Float[Array, "k C"]:
  """Own definition: softmax(U / tau) over the candidates, monotone in U for every tau > 0."""
  return jax.nn.softmax(utility[None] / tau[:, None])


def calibrate(utility: Float[Array, " C"], counts: Int[Array, " C"],
              taus: Float[Array, " k"]) -> tuple[Array, Array]:
  """(tau of least mean negative log-likelihood of the counts, the curve [k], nats)."""
  log_p = jax.nn.log_softmax(utility[None] / taus[:, None])
  share = counts / counts.sum()
  nll = -(share[None].astype(log_p.dtype) * log_p).sum(1)
  return taus[jnp.argmin(nll)], nll


def expected_gain(probs: Float[Array, "k C"], gain: Float[Array, "C C"]) -> Float[Array, "k C"]:
  """sum_c' P(c') G(c, c') of choosing c; its argmax is the minimum Bayes risk decision."""
  return probs @ gain.T


def tau_grid(low: float = 0.05, high: float = 20.0, count: int = 121) -> np.ndarray:
  """Own default grid, even in log tau."""
  return np.exp(np.linspace(np.log(low), np.log(high), count))
