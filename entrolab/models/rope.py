"""Rotary positions: plain, or with the low frequencies stretched as in Llama 3.1 and later."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from entrolab.typing import Array, Float, Int

NAMES = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
         "original": "original_max_position_embeddings"}
PLAIN = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


@dataclasses.dataclass(frozen=True)
class Stretch:
  """Llama 3.1's change of frequencies: wave lengths over original / low are `factor` times longer,
  those under original / high stay, between them the rate is interpolated."""
  factor: float
  low: float
  high: float
  original: int


def rates(dim: int, theta: float, stretch: Stretch | None) -> Float[Array, " h"]:
  """Radians a position of each pair: theta^(-i / half), stretched where asked."""
  half = dim // 2
  rate = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if stretch is None:
    return rate
  turns = stretch.original * rate / (2.0 * math.pi)
  kept = jnp.clip((turns - stretch.low) / (stretch.high - stretch.low), 0.0, 1.0)
  return rate * (kept + (1.0 - kept) / stretch.factor)


def rotate(x: Float[Array, "B N *h dh"], positions: Int[Array, "B N"], theta: float,
           stretch: Stretch | None = None) -> Array:
  """Rotary embedding, half split: angles in float32 whatever the dtype of x."""
  rate = rates(x.shape[-1], theta, stretch)
  angle = positions.astype(jnp.float32)[..., None] * rate[None, None]
  angle = angle.reshape(*positions.shape, *([1] * (x.ndim - 3)), x.shape[-1] // 2)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def read(facts: Mapping[str, Any], where: str) -> tuple[float, Stretch | None]:
  """(theta, stretch) of a config.json. Raises ValueError for another kind or partial rotation."""
  plain, stretch = facts.get("rope_parameters") or {}, None
  for key in ("rope_scaling", "rope_parameters"):
    kind = facts.get(key) or {}
    name = kind.get("rope_type", kind.get("type", "default")) if isinstance(kind, dict) else kind
    extra = set(NAMES.values()) if name == "llama3" else set()
    if name not in ("default", "llama3") or kind.keys() - PLAIN != extra:
      raise ValueError(f"{where}: {key}={kind} is not supported; known: default, and llama3 with "
                       f"{', '.join(NAMES.values())}")
    if name == "llama3":
      stretch = Stretch(**{ours: kind[theirs] for ours, theirs in NAMES.items()})
  for given in (facts, plain):
    if given.get("partial_rotary_factor", 1.0) != 1.0:
      raise ValueError(f"{where}: partial_rotary_factor={given['partial_rotary_factor']} is not "
                       "supported; positions rotate whole heads")
  bases = {float(given["rope_theta"]) for given in (facts, plain) if given.get("rope_theta")}
  if len(bases) > 1:
    raise ValueError(f"{where}: two values of rope_theta: {sorted(bases)}")
  return bases.pop() if bases else 1e4, stretch


def describe(theta: float, stretch: Stretch | None) -> dict[str, Any]:
  """The entries of a config.json that `read` reads."""
  if stretch is None:
    return {"rope_theta": theta}
  scaling = {theirs: getattr(stretch, ours) for ours, theirs in NAMES.items()}
  return {"rope_theta": theta, "rope_scaling": {"rope_type": "llama3", **scaling}}
