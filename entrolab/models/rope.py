"""Rotary positions: rates of rotation, their change for longer contexts, and the rotation."""

import math

import jax.numpy as jnp

from entrolab.typing import Array, Float, Int, real


def rates(dim: int, theta: float) -> Float[Array, " h"]:
  """Radians a position of each pair of a head: theta^(-i / half), half = dim / 2."""
  half = dim // 2
  return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)


def llama3(rate: Float[Array, " h"], *, factor: float, low: float, high: float,
           original: int) -> Float[Array, " h"]:
  """Llama 3.1's change of the rates, by the wave length 2 pi / rate in positions.

  Above original / low the rate is divided by `factor`, below original / high it stays, between
  them both are mixed in proportion to `original` over the wave length.
  """
  turns = original * rate / (2.0 * math.pi)  # over the original context
  stays = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return rate * (stays + (1.0 - stays) / factor)


def yarn(rate: Float[Array, " h"], *, theta: float, factor: float, original: int, fast: float,
         slow: float, truncate: bool) -> Float[Array, " h"]:
  """YaRN's change of the rates, by the turns of a pair over the original context.

  Pairs that turn `fast` times or more stay, those that turn `slow` times or less are divided by
  `factor`; between their places in the head the two are mixed in proportion to the place. truncate:
  these places are rounded outwards. Peng et al., arXiv:2309.00071, section 3.2.
  """
  half = rate.shape[0]
  dim = 2 * half
  # the place i at which original theta^(-i / half) / (2 pi) is a number of turns
  place = lambda turns: dim * math.log(original / (turns * 2.0 * math.pi)) / (2 * math.log(theta))
  first, last = place(fast), place(slow)
  if truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, dim - 1)
  # as in transformers: equal places are a step
  width = 0.001 if first == last else last - first
  divided = jnp.clip((jnp.arange(half, dtype=jnp.float32) - first) / width, 0.0, 1.0)
  return rate / factor * divided + rate * (1.0 - divided)


def proportional(rate: Float[Array, " h"], *, part: float, factor: float) -> Float[Array, " h"]:
  """The first `part` of the pairs at rates divided by `factor`; the others do not turn."""
  turning = int(part * 2 * rate.shape[0] // 2)
  return rate * real(jnp.arange(rate.shape[0]) < turning) / factor


def rotate(x: Float[Array, "B N *h dh"], positions: Int[Array, "B N"],
           rate: Float[Array, " h"], gain: float = 1.0) -> Array:
  """gain times the rotary embedding, half split: angles in float32 whatever the dtype of x."""
  angle = positions.astype(jnp.float32)[..., None] * rate[None, None]
  angle = angle.reshape(*positions.shape, *([1] * (x.ndim - 3)), x.shape[-1] // 2)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  if gain != 1.0:
    cos, sin = gain * cos, gain * sin
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
