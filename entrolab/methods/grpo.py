"""GRPO: advantages from a group of responses to the same prompt; Dr.GRPO without the deviation.

DeepSeekMath, Shao et al. (arXiv:2402.03300, 2024); Understanding R1-Zero-Like Training, Liu et al.
(arXiv:2503.20783, 2025). Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: reward, advantage.  State: none.
Differs from the official code: (1) the deviation is over n - 1, as in verl and TRL; the paper does
not say; (2) a group of one has mean 0 and deviation 1, as in verl.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import all_equal, grouped, known_mean
from entrolab.typing import Advantage, Array, Float, Int, Reward, real


@checked
def outcome(verdict: Int[Array, " B"], *, right: float = 1.0, wrong: float = 0.0) -> Reward:
  """`right` for a verdict of 1, `wrong` for 0, NaN for -1: the reward of unknown is unknown."""
  known = jnp.where(verdict == 1, right, wrong)
  return jnp.where(verdict < 0, jnp.nan, known).astype(real(verdict).dtype)


@checked
def group_advantage(rewards: Float[Array, " B"], *, size: int, eps: float = 1e-6) -> Advantage:
  """A = (R - mean_group R) / (std_group R + eps), arXiv:2402.03300 section 4.1.2.

  size: G, responses a prompt, groups contiguous. An all-equal group gives exactly zero, and so does
  a reward that is not known (NaN), which is in no mean and no deviation.
  """
  r = grouped(rewards, size)
  if size == 1:
    return _zero_unknown(r / (1.0 + eps), r).reshape(rewards.shape)
  middle = _centred(r)
  std = jnp.sqrt(known_mean(jnp.square(middle), axis=1, less=1))
  return _zero_unknown(middle / (std + eps), r).reshape(rewards.shape)


@checked
def centred_advantage(rewards: Float[Array, " B"], *, size: int) -> Advantage:
  """A = R - mean_group R: Dr.GRPO, arXiv:2503.20783 equation 4. A group of one keeps R.

  A reward that is not known (NaN) is not in the mean and has advantage 0.
  """
  r = grouped(rewards, size)
  return _zero_unknown(r if size == 1 else _centred(r), r).reshape(rewards.shape)


def _centred(r: Float[Array, "P G"]) -> Float[Array, "P G"]:
  # an all-equal group is zero by comparison: its mean may round away from its members
  zero = jnp.where(jnp.isnan(r), r, 0.0)
  return jnp.where(all_equal(r), zero, r - known_mean(r, axis=1))


def _zero_unknown(x: Float[Array, "P G"], r: Float[Array, "P G"]) -> Float[Array, "P G"]:
  return jnp.where(jnp.isnan(r), 0.0, x)
