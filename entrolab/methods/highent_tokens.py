"""HIGHENT-TOKENS: the policy gradient on the tokens of highest entropy alone.

Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM
Reasoning, Wang et al. (arXiv:2506.01939, 2025). Official code: Shenzhi-Wang/Beyond-the-80-20-
Rule-RLVR, verl/trainer/ppo/core_algos.py; also huggingface/trl, trl/trainer/grpo_trainer.py.
Acts on: weights.  State: none.
Differs from the official code: (1) the ranking is over the whole optimiser batch, as in the paper
and TRL; the repository ranks per micro-batch and device (`scope="micro"`); (2) ties are broken by
the noise column. The repository divides by the selected tokens (`aggregate.selected_mean`), the
paper by all of them (`aggregate.token_mean`), TRL keeps whatever reaches a quantile and divides by
all: `quantile_mask`. Penalties keep the full mask.
"""

from typing import Literal

import jax.numpy as jnp

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Weight, real


@checked
def top_mask(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *,
             fraction: float = 0.2, keep: Literal["top", "rest"] = "top") -> Weight:
  """1 on the max(1, ceil(fraction * N)) tokens of highest entropy, 0 elsewhere.

  entropy: of the current policy, nats; N valid tokens. keep="rest" turns it round, for the
  ablation on the tokens of low entropy. No gradient through the choice.
  """
  return _chosen(entropy, mask, noise, fraction, keep)


@checked
def old_top_mask(old_entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
                 noise: Float[Array, "B T"], *, fraction: float = 0.2,
                 keep: Literal["top", "rest"] = "top") -> Weight:
  """The same by the entropy of the policy that sampled: a fixed choice for all updates of a
  rollout, and no pass over the batch before the first micro-batch."""
  return _chosen(old_entropy, mask, noise, fraction, keep)


@checked
def quantile_mask(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
                  fraction: float = 0.2) -> Weight:
  """1 on tokens at or above the (1 - fraction) quantile (linear) of all valid entropies: TRL.

  All ties at the quantile count, so the count may exceed fraction * N.
  """
  return real(mask & (entropy >= ranks.quantile(entropy, mask, 1.0 - fraction)))


def _chosen(entropy, mask, noise, fraction, keep):
  if not 0.0 <= fraction <= 1.0 or keep not in ("top", "rest"):
    raise ValueError(f"top_mask(fraction={fraction}, keep={keep!r}): a fraction in [0, 1], and "
                     "'top' or 'rest'")
  # the official ceiling, which forgives rounding of fraction * N
  count = jnp.maximum(jnp.floor(fraction * real(mask).sum() + 0.9999), 1.0)
  top = ranks.top(entropy, mask, noise, count)
  return real(top if keep == "top" else mask & ~top)
