"""EMPG: scale each step's advantage by its relative entropy; pay when the next step is clear.

Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents
(arXiv:2509.09265, 2025). Official code: none; formulas from the paper, cross-checked with the
re-implementation in WillDreamer/ARLArena, recipe/world_agent/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from that code: steps come from explicit segment ids (`phase`), not from words in a prompt.
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import replicated, step_sums
from entrolab.typing import Advantage, Array, Bool, Float, Int, real


@checked
def gains(entropy: Float[Array, "S B"], valid: Bool[Array, "S B"], *, sharpness: float = 1.0,
          clarity: float = 1.0, eps: float = 1e-8) -> tuple[Array, Array, Array]:
  """(normalised entropy, g, f) of all steps of the batch, equations 7 to 9.

  n = (H - min) / (max - min + eps); g = exp(-k n) / (mean exp(-k n) + eps); f = exp(-k' n). Zero
  where a step has no token.
  """
  low = jnp.where(valid, entropy, jnp.inf).min()
  high = jnp.where(valid, entropy, -jnp.inf).max()
  n = jnp.where(valid, (entropy - low) / (high - low + eps), 0.0)
  e = jnp.where(valid, jnp.exp(-sharpness * n), 0.0)
  mean = e.sum() / jnp.maximum(real(valid).sum(), 1.0).astype(e.dtype)
  return n, e / (mean + eps), jnp.where(valid, jnp.exp(-clarity * n), 0.0)


@checked
def modulate(adv: Float[Array, "B T"], old_entropy: Float[Array, "B T"], phase: Int[Array, "B T"],
             mask: Bool[Array, "B T"], *, steps: int, sharpness: float = 1.0, clarity: float = 1.0,
             zeta: float = 0.05, recentre: bool = True, eps: float = 1e-8) -> Advantage:
  """A g_s + zeta f_{s+1}, less its mean over all steps of the batch (equations 10 to 12).

  H_s: mean entropy of the policy that sampled over the step's tokens. The last step of a row gets
  no bonus. steps: the most steps a row may have; a token beyond it makes its row NaN, since
  merging steps in silence would be worse.
  """
  adv, old_entropy, phase, mask = map(replicated, (adv, old_entropy, phase, mask))
  count = step_sums(jnp.ones_like(adv), phase, mask, steps=steps)
  valid, safe = count > 0, jnp.maximum(count, 1.0)
  mean_of = lambda x: step_sums(x, phase, mask, steps=steps) / safe
  _, g, f = gains(mean_of(old_entropy), valid, sharpness=sharpness, clarity=clarity, eps=eps)
  following = jnp.concatenate([f[1:], jnp.zeros_like(f[:1])])
  moved = jnp.where(valid, mean_of(adv) * g + zeta * following, 0.0)
  if recentre:
    moved = moved - moved.sum() / jnp.maximum(real(valid).sum(), 1.0).astype(moved.dtype)
  spread = lambda s, value: jnp.where(phase == s, value[:, None], 0.0)
  tokens = jax.vmap(spread)(jnp.arange(steps, dtype=phase.dtype), moved).sum(0)
  return jnp.where(mask & (phase >= steps), jnp.nan, jnp.where(mask, tokens, 0.0))
