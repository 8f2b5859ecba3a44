"""UTILITY-DUALITY: softmax outputs as ordinal utilities, and decisions on top of them.

Utility-Probability Duality of Neural Networks, Huang and Fei (arXiv:2305.14859, 2023). Official
code: none found; only the abstract was read. The paper's equation from utilities to probabilities
was not seen: `candidate_probs` is a definition of this file.
Acts on: analysis.  State: none.
Differs from the paper: see above; only `learn` is implied by its abstract.
"""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.arguments import checked
from entrolab.typing import Array, Float, Int


@checked
def learn(utility: Float[Array, "B V"], observed: Int[Array, " B"], *,
          rate: float) -> Float[Array, "B V"]:
  """A step of maximum likelihood on a table: u + rate (1[y] - softmax u); its sum is unchanged."""
  return utility + rate * (jax.nn.one_hot(observed, utility.shape[1], dtype=utility.dtype)
                           - jax.nn.softmax(utility))


@checked
def sequence_utility(logits: Float[Array, "C L V"], tokens: Int[Array, "C L"],
                     length: Int[Array, " C"], *, raw: bool = False) -> Float[Array, " C"]:
  """sum_t log softmax(u)(y_t) of each candidate.

  raw: the sum of the logits themselves, which contain an arbitrary constant for each prefix.
  """
  values = logits if raw else jax.nn.log_softmax(logits)
  of_tokens = jnp.take_along_axis(values, tokens[..., None], -1)[..., 0]
  inside = jnp.arange(tokens.shape[1])[None] < length[:, None]
  return jnp.where(inside, of_tokens, 0.0).sum(1)


@checked
def candidate_probs(utility: Float[Array, " C"], tau: Float[Array, " k"]) -> Float[Array, "k C"]:
  """softmax(U / tau) over the candidates, monotone in U for every tau > 0; not the paper's."""
  return jax.nn.softmax(utility[None] / tau[:, None])


@checked
def calibrate(utility: Float[Array, " C"], counts: Int[Array, " C"],
              taus: Float[Array, " k"]) -> tuple[Array, Array]:
  """(the tau of least mean negative log-likelihood of the counts, that likelihood [k], nats).

  Without any count every tau has 0, and the first is returned.
  """
  log_p = jax.nn.log_softmax(utility[None] / taus[:, None])
  share = counts / jnp.maximum(counts.sum(), 1)
  nll = -(share[None].astype(log_p.dtype) * log_p).sum(1)
  return taus[jnp.argmin(nll)], nll


@checked
def expected_gain(probs: Float[Array, "k C"], gain: Float[Array, "C C"]) -> Float[Array, "k C"]:
  """sum_c' P(c') G(c, c') of choosing c; its argmax is the minimum Bayes risk decision."""
  return probs @ gain.T


def tau_grid(low: float = 0.05, high: float = 20.0, count: int = 121) -> np.ndarray:
  """A grid of temperatures, even in log tau; not the paper's."""
  return np.exp(np.linspace(np.log(low), np.log(high), count))
