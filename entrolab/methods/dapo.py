"""DAPO: clip-higher, token mean, a soft penalty for overlong answers, groups of unequal rewards.

DAPO: An Open-Source LLM Reinforcement Learning System at Scale, Yu et al. (arXiv:2503.14476,
2025). Official code: volcengine/verl, verl/workers/reward_manager/dapo.py and the DAPO recipe.
Acts on: reward, weights.  State: none.
Differs from the official code: (1) dynamic sampling that runs out of refills trains on the groups
it has and gives those of equal rewards weight zero, instead of stopping the run; (2) clip-higher
is `ppo.clipped_ratio(high=0.28)`, the token mean `aggregate.token_mean`.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import all_equal, grouped
from entrolab.typing import Array, Bool, Float, Reward, Weight, real


@checked
def overlong(rewards: Float[Array, " B"], mask: Bool[Array, "B T"], *, max_tokens: int, buffer: int,
             factor: float = 1.0) -> Reward:
  """R + min(-(n - (max_tokens - buffer)) / buffer * factor, 0), arXiv:2503.14476 equation 13.

  n: valid tokens of the response; max_tokens, buffer: tokens (never characters). -factor at the
  max_tokens length. Raises ValueError when the buffer is not inside (0, max_tokens].
  """
  if not 0 < buffer <= max_tokens:
    raise ValueError(f"overlong(max_tokens={max_tokens}, buffer={buffer}): needs 0 < buffer <= "
                     "max_tokens")
  over = real(mask).sum(-1) - (max_tokens - buffer)
  return rewards + jnp.minimum(-over / buffer * factor, 0.0)


@checked
def has_signal(rewards: Float[Array, " B"], mask: Bool[Array, "B T"], *, size: int) -> Weight:
  """1 on the groups whose known rewards differ, 0 elsewhere; a group of one counts, too.

  arXiv:2503.14476 equation 11 keeps 0 < #right < G. Together with `aggregate.selected_mean` the
  denominator counts these groups alone.
  """
  r = grouped(rewards, size)
  rows = (~all_equal(r) | (size == 1)) & ~jnp.isnan(r)
  return real(mask & rows.reshape(-1, 1))
