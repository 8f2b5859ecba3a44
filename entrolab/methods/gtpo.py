"""GTPO: in right answers uncertain tokens are paid more, in wrong ones certain tokens cost more.

GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy, Tan et al.
(arXiv:2508.04349, 2025). Official code: none found; equations as a public replication plan quotes
them.
Acts on: advantage, surrogate.  State: none.
Differs from the paper, as quoted: (1) the advantage is normalised over all tokens of a group
(`joint_advantage`); equation 6 normalises right and wrong rows apart (`split_advantage`), so that
right tokens have mean advantage 0; (2) deviations are over n - 1 and fewer than two values have
advantage 0, which the paper leaves open; (3) `floor`, off by default, bounds entropies from below:
the inverse entropy of one nearly certain token of a wrong row takes the bonus of all rows there.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods import ppo
from entrolab.ranks import grouped, masked_mean
from entrolab.typing import Advantage, Array, Bool, Float, Surrogate, real


@checked
def token_reward(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
                 mask: Bool[Array, "B T"], *, size: int, base: float = 1.0, bonus: float = 0.1,
                 eps: float = 1e-8, floor: float = 0.0) -> Float[Array, "B T"]:
  """The reward of every token, equations 3 and 5; 0 on padding.

  Right (R > 0):  base + bonus d H / (sum_right H + eps); wrong:  -(base + bonus h w / sum_wrong w),
  w = 1 / (H + eps). The sums run over the rows of a side that have a token at the position, of
  which there are d and h: what a side gets at a position is base + bonus a row, whatever H.

  old_entropy: of the policy that sampled, whole vocabulary, nats, taken as `floor` where below.
  size: G, responses a prompt, groups contiguous. base, bonus: the paper's alpha_1, alpha_2.
  Raises ValueError for a bonus or floor below 0, or an eps not above 0.
  """
  sign, excess, _ = _parts(rewards, old_entropy, mask, size, bonus, eps, floor)
  return (sign * (base + bonus + bonus * excess)).reshape(mask.shape)


@checked
def joint_advantage(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
                    mask: Bool[Array, "B T"], *, size: int, base: float = 1.0, bonus: float = 0.1,
                    eps: float = 1e-8, floor: float = 0.0, std_eps: float = 1e-6) -> Advantage:
  """A = (x - mean x) / (std x + std_eps), x = `token_reward`, over all tokens of a group.

  With bonus = 0 this is GRPO on rewards of +-base with every token counted. A group all right or
  all wrong is not 0: what remains is its entropy. Arguments and errors of `token_reward`.
  """
  sign, excess, on = _parts(rewards, old_entropy, mask, size, bonus, eps, floor)
  return _normalised(sign, excess, on, base, bonus, std_eps).reshape(mask.shape)


@checked
def split_advantage(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
                    mask: Bool[Array, "B T"], *, size: int, base: float = 1.0, bonus: float = 0.1,
                    eps: float = 1e-8, floor: float = 0.0, std_eps: float = 1e-6) -> Advantage:
  """As `joint_advantage`, but over the tokens of right rows and of wrong rows apart, equation 6.

  Both means are 0: credit moves between the tokens of a side alone. Arguments and errors of
  `token_reward`.
  """
  sign, excess, on = _parts(rewards, old_entropy, mask, size, bonus, eps, floor)
  right, wrong = (_normalised(sign, excess, on & side, base, bonus, std_eps)
                  for side in (sign > 0.0, sign < 0.0))
  return (right + wrong).reshape(mask.shape)


@checked
def sequence_reward(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
                    mask: Bool[Array, "B T"], *, size: int, base: float = 1.0, bonus: float = 0.1,
                    eps: float = 1e-8, floor: float = 0.0) -> Float[Array, " B"]:
  """`token_reward` of GRPO-S, equations 8 and 9: H is the mean entropy of a row, d and h are its
  group's numbers of right and of wrong rows. 0 for a row without tokens.

  base, bonus: the paper's beta_1, beta_2; floor: of row means. Others and errors of `token_reward`.
  """
  h, on = _rows(old_entropy, mask)
  return token_reward(rewards, h, on, size=size, base=base, bonus=bonus, eps=eps,
                      floor=floor)[:, 0]


@checked
def sequence_advantage(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
                       mask: Bool[Array, "B T"], *, size: int, base: float = 1.0,
                       bonus: float = 0.1, eps: float = 1e-8, floor: float = 0.0,
                       std_eps: float = 1e-6) -> Advantage:
  """A = (x - mean x) / (std x + std_eps), x = `sequence_reward`, over the rows of a group.

  Arguments and errors of `sequence_reward`.
  """
  h, on = _rows(old_entropy, mask)
  return joint_advantage(rewards, h, on, size=size, base=base, bonus=bonus, eps=eps, floor=floor,
                         std_eps=std_eps)[:, 0]


@checked
def mean_ratio(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
               mask: Bool[Array, "B T"], *, low: float = 0.2, high: float = 0.28,
               limit: float = 20.0) -> Surrogate:
  """max(-A s, -A clip(s, 1 - low, 1 + high)) of GRPO-S, s = mean_t pi / pi_old of the row.

  s is an arithmetic mean, which one token can move, and no likelihood ratio; A is the mean
  advantage of the row. Every token holds the value of its row, so that `aggregate.sequence_mean` is
  the mean over rows. limit: of |log pi / pi_old|, nats, as in `ppo.ratio`.
  """
  s = masked_mean(ppo.ratio(logp, old_logp, limit=limit), mask, axis=1)
  a = masked_mean(adv, mask, axis=1)
  loss = jnp.maximum(-a * s, -a * jnp.clip(s, 1.0 - low, 1.0 + high))
  return jnp.broadcast_to(loss[:, None], logp.shape)


def _rows(old_entropy: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> tuple[Array, Array]:
  """Rows as if they had one token: mean entropy [B, 1], and which have any [B, 1]."""
  return masked_mean(old_entropy, mask, axis=1)[:, None], mask.any(1)[:, None]


def _parts(rewards: Array, old_entropy: Array, mask: Array, size: int, bonus: float, eps: float,
           floor: float) -> tuple[Array, Array, Array]:
  """(sign, excess, on) [P, G, T] of reward = sign (base + bonus (1 + excess)); 0 where not on."""
  if bonus < 0.0 or floor < 0.0 or eps <= 0.0:
    raise ValueError(f"gtpo(bonus={bonus}, eps={eps}, floor={floor}): needs bonus >= 0, eps > 0, "
                     "floor >= 0")
  # a row whose reward is not known (NaN) is on neither side
  on = grouped(mask & ~jnp.isnan(rewards)[:, None], size)
  right = grouped(rewards, size)[..., None] > 0.0
  # rounding may leave the entropy of a certain token below 0, and 1 / (H + eps) negative
  h = jnp.where(on, jnp.maximum(grouped(old_entropy, size), floor), 0.0)
  paid = _excess(h, on & right, eps)
  charged = _excess(1.0 / (h + eps), on & ~right, 0.0)
  one = jnp.ones_like(h)
  return jnp.where(on, jnp.where(right, one, -one), 0.0), paid + charged, on


def _excess(w: Float[Array, "P G T"], on: Bool[Array, "P G T"], eps: float) -> Array:
  """count w / (sum w + eps) - 1 over the rows that are on; 0 elsewhere.

  Out of differences from the largest: exactly 0 for equal w, where the quotient less 1 would be a
  rounding error, which a small deviation blows up.
  """
  most = jnp.where(on, w, 0.0).max(1, keepdims=True)
  less = jnp.where(on, w - most, 0.0)
  count = real(on).sum(1, keepdims=True).astype(w.dtype)
  total = jnp.where(on, w, 0.0).sum(1, keepdims=True) + eps
  over = count * less - less.sum(1, keepdims=True) - eps
  return jnp.where(on, over / jnp.where(on, total, 1.0), 0.0)


def _normalised(sign: Array, excess: Array, on: Bool[Array, "P G T"], base: float,
                bonus: float, std_eps: float) -> Array:
  """(x - mean x) / (std x + std_eps) over the tokens of each group that are on; 0 for fewer than 2.

  Signs and excesses are centred apart, so that one sign alone cancels to exactly 0.
  """
  count = real(on).sum((1, 2), keepdims=True).astype(sign.dtype)

  def centred(x):
    mean = jnp.where(on, x, 0.0).sum((1, 2), keepdims=True) / jnp.maximum(count, 1.0)
    return jnp.where(on, x - mean, 0.0)

  middle = (base + bonus) * centred(sign) + bonus * centred(sign * excess)
  variance = jnp.square(middle).sum((1, 2), keepdims=True) / jnp.maximum(count - 1.0, 1.0)
  return jnp.where(count > 1.0, middle / (jnp.sqrt(variance) + std_eps), 0.0)
