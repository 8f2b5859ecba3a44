"""The one table of accelerators, and the time that a program needs at least on one of them.

Rates are the makers' peaks per chip (dense bfloat16, no sparsity). `link` is what a chip can send
at once over all links of its fast interconnect, one way; makers also state twice that, both ways.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chip:
  """Rates of one accelerator."""
  name: str  # as in CHIPS
  flops: float  # bfloat16 FLOPs a second
  memory: float  # bytes
  bandwidth: float  # of the memory, bytes a second
  link: float  # over all links together, bytes a second, one way
  axes: int  # dimensions of the torus, 1 for a switch
  source: str  # where the rates are stated


GB, GIB = 1e9, 2.0 ** 30
CHIPS = {chip.name: chip for chip in (
    Chip("v4", 275e12, 32 * GIB, 1200 * GB, 300 * GB, 3, "https://cloud.google.com/tpu/docs/v4"),
    Chip("v5e", 197e12, 16 * GIB, 819 * GB, 200 * GB, 2, "https://cloud.google.com/tpu/docs/v5e"),
    Chip("v5p", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 3, "https://cloud.google.com/tpu/docs/v5p"),
    Chip("v6e", 918e12, 32 * GIB, 1600 * GB, 400 * GB, 2, "https://cloud.google.com/tpu/docs/v6e"),
    Chip("A100", 312e12, 80 * GIB, 2039 * GB, 300 * GB, 1, "NVIDIA A100 80GB SXM data sheet, 2021"),
    Chip("H100", 989.4e12, 80 * GIB, 3350 * GB, 450 * GB, 1, "NVIDIA H100 SXM data sheet, 2023"))}


def get(name: str) -> Chip:
  """A chip by name. Raises ValueError with the choices."""
  if name not in CHIPS:
    raise ValueError(f"chip {name!r}; choices: {', '.join(CHIPS)}")
  return CHIPS[name]


KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e",
         "NVIDIA A100": "A100", "NVIDIA H100": "H100"}  # how jax's device kinds begin


def of(devices: Sequence[Any]) -> Chip:
  """The chip of devices that are alike; one that is not in CHIPS, such as a CPU, is measured."""
  kind = devices[0].device_kind
  known = [start for start in KINDS if kind.startswith(start)]
  if not known:
    return measured(devices)
  return get(KINDS[max(known, key=len)])  # "TPU v5 lite" begins with "TPU v5" too


def measured(devices: Sequence[Any], size: int = 1024, megabytes: int = 128) -> Chip:
  """Rates measured on the first device, in about a quarter of a second.

  flops: the best of five float32 matmuls of `size`; bandwidth and link: of five sums over an array
  of `megabytes`. Devices of one CPU share its cores, so each gets its part of the rates.
  """
  def best(fn, *args):
    made = jax.jit(fn).lower(*args).compile()
    jax.block_until_ready(made(*args))
    seconds = []
    for _ in range(5):
      started = time.perf_counter()
      jax.block_until_ready(made(*args))
      seconds.append(time.perf_counter() - started)
    return min(seconds)

  square, line = jax.device_put((jnp.ones((size, size)), jnp.ones(megabytes << 18)), devices[0])
  flops = 2.0 * size ** 3 / best(lambda x: x @ x, square)
  read = line.nbytes / best(jnp.sum, line)
  parts = len(devices) if devices[0].platform == "cpu" else 1
  return Chip(devices[0].device_kind, flops / parts, 0.0, read / parts, read / parts, 1, "measured")


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds that one program on one chip needs at least."""
  compute: float  # for its FLOPs
  memory: float  # for its bytes from and to the memory
  link: float  # for its bytes over the interconnect

  @property
  def seconds(self) -> float:
    """The least time: everything that can overlap does."""
    return max(dataclasses.astuple(self))

  @property
  def serial(self) -> float:
    """The time if nothing overlaps."""
    return sum(dataclasses.astuple(self))

  @property
  def bound(self) -> str:
    """Which of the three binds."""
    return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def roofline(chip: Chip, flops: float, moved: float, sent: float = 0.0) -> Roofline:
  """The roofline time of a program of which each chip does `flops`, moves `moved` bytes from and to
  its memory and sends `sent` bytes over all its links.

  A transfer within one axis of a torus has 1 / axes of the links: scale its bytes by `axes`.
  """
  return Roofline(flops / chip.flops, moved / chip.bandwidth, sent / chip.link)
