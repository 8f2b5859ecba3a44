"""Rotary positions: plain, or with the low frequencies stretched as in Llama 3.1 and later."""

import math

import jax.numpy as jnp

from entrolab.typing import Array, Float, Int


def rates(dim: int, theta: float) -> Float[Array, " h"]:
  """Radians a position of each pair of a head: theta^(-i / half), half = dim / 2."""
  half = dim // 2
  return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)


def stretched(rate: Float[Array, " h"], *, factor: float, low: float, high: float,
              original: int) -> Float[Array, " h"]:
  """Llama 3.1's change of the rates, by the wave length 2 pi / rate in positions.

  Above original / low the rate is divided by `factor`, below original / high it stays, between
  them both are mixed in proportion to `original` over the wave length.
  """
  turns = original * rate / (2.0 * math.pi)  # over the original context
  stays = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return rate * (stays + (1.0 - stays) / factor)


def rotate(x: Float[Array, "B N *h dh"], positions: Int[Array, "B N"],
           rate: Float[Array, " h"]) -> Array:
  """Rotary embedding, half split: angles in float32 whatever the dtype of x."""
  angle = positions.astype(jnp.float32)[..., None] * rate[None, None]
  angle = angle.reshape(*positions.shape, *([1] * (x.ndim - 3)), x.shape[-1] // 2)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
