"""DIFFADAPT: label questions by accuracy and entropy, probe a hidden state, pick a strategy.

DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference (arXiv:2510.19669,
2025). Official code: none found; formulas read in descriptions.
Acts on: analysis.  State: none.
Differs from the paper, as far as known: a question's entropy is the mean over samples of their
token means; the order of the conditions (Normal, Hard, else Easy) is chosen here and matters only
for gamma > alpha.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.arguments import checked
from entrolab.typing import Array, Float, Int

EASY, NORMAL, HARD = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Strategy:
  """How responses to a class of questions are sampled."""
  temperature: float  # of the samples
  budget: float  # fraction of max_tokens
  style: str  # of the prompt


STRATEGIES = (Strategy(0.5, 0.4, "answer directly, then verify"),
              Strategy(0.8, 1.0, "step by step"), Strategy(0.4, 0.5, "fail fast"))


@checked
def labels(entropy: Float[Array, " Q"], accuracy: Float[Array, " Q"], *, alpha: float, beta: float,
           gamma: float) -> Int[Array, " Q"]:
  """NORMAL if accuracy >= alpha and entropy <= beta; else HARD if accuracy < gamma; else EASY.

  entropy: nats per token. EASY questions are often answered correctly, but with high entropy:
  over-thinking.
  """
  rest = jnp.where(accuracy < gamma, HARD, EASY)
  return jnp.where((accuracy >= alpha) & (entropy <= beta), NORMAL, rest)


@checked
def probe_logits(hidden: Float[Array, "Q D"], w1: Float[Array, "H D"], b1: Float[Array, " H"],
                 w2: Float[Array, "3 H"], b2: Float[Array, " 3"]) -> Float[Array, "Q 3"]:
  """W2 relu(W1 h + b1) + b2 of the last prompt token's hidden state."""
  return jax.nn.relu(hidden @ w1.T + b1[None]) @ w2.T + b2[None]


@checked
def probe_loss(logits: Float[Array, "Q 3"], label: Int[Array, " Q"]) -> Float[Array, ""]:
  """Mean cross-entropy, nats; 0 without any question."""
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)
  return -chosen.sum() / max(chosen.shape[0], 1)


@checked
def decide(label: Int[Array, " Q"], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """(temperature, floor(budget * max_tokens)) of each question's strategy."""
  at = np.asarray(label)
  temperature = np.asarray([s.temperature for s in STRATEGIES])[at]
  budget = np.asarray([int(s.budget * max_tokens) for s in STRATEGIES])[at]
  return temperature, budget


def cheapest_right(right: np.ndarray, cost: np.ndarray) -> np.ndarray:
  """Oracle: for each question the cheapest strategy that answers it, else the cheapest of all.

  right, cost: [Q, strategies]; returns indices [Q].
  """
  right = np.asarray(right, bool)
  priced = np.where(right | ~right.any(1, keepdims=True), cost, np.inf)
  return priced.argmin(1)
