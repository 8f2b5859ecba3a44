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
    Chip("H100", 989.4e12, 80 * GIB, 3350 * GB, 450 * GB, 1, "NVIDIA H100 SXM data sheet, 2023"),
    Chip("H200", 989.4e12, 141 * GB, 4800 * GB, 450 * GB, 1, "NVIDIA H200 SXM data sheet, 2024"),
    Chip("B200", 2250e12, 180 * GB, 8000 * GB, 900 * GB, 1, "NVIDIA HGX B200 data sheet, 2025"),
    # a chip of TPU7x is two devices for jax: each has half of 2307 TFLOPs, 192 GiB, 7380 GB/s, and
    # of 600 GB/s one way
    Chip("v7x", 1153.5e12, 96 * GIB, 3690 * GB, 300 * GB, 3,
         "https://cloud.google.com/tpu/docs/tpu7x"))}


def get(name: str) -> Chip:
  """A chip by name. Raises ValueError with the choices."""
  if name not in CHIPS:
    raise ValueError(f"chip {name!r}; choices: {', '.join(CHIPS)}")
  return CHIPS[name]


# jax's device kinds, whole: an H100 PCIe or an A100 of 40 GB is another chip than its namesake
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
         "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "v7x",
         "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200",
         "NVIDIA B200": "B200"}


def of(devices: Sequence[Any]) -> Chip:
  """The chip of devices that are alike; one that is not in CHIPS, such as a CPU, is measured."""
  kind = devices[0].device_kind
  return get(KINDS[kind]) if kind in KINDS else measured(devices)


def measured(devices: Sequence[Any], size: int = 0, megabytes: int = 0) -> Chip:
  """Rates measured on the first device, in about a quarter of a second.

  flops: the best of five matmuls of `size`, in bfloat16 on an accelerator, as the table has it, and
  in float32 on a CPU; bandwidth, and link for want of a peer: of five sums over an array of
  `megabytes`. Sizes of 0 are 8,192 and 1,024 on an accelerator, where less would time its launch,
  1,024 and 128 on a CPU. Devices of one CPU share its cores, so each gets its part of the rates.
  """
  on_cpu = devices[0].platform == "cpu"
  size = size or (1024 if on_cpu else 8192)
  megabytes = megabytes or (128 if on_cpu else 1024)
  dtype = jnp.float32 if on_cpu else jnp.bfloat16

  def best(fn, *args):
    made = jax.jit(fn).lower(*args).compile()
    jax.block_until_ready(made(*args))
    seconds = []
    for _ in range(5):
      started = time.perf_counter()
      jax.block_until_ready(made(*args))
      seconds.append(time.perf_counter() - started)
    return min(seconds)

  square, line = jax.device_put((jnp.ones((size, size), dtype), jnp.ones(megabytes << 18)),
                                devices[0])
  flops = 2.0 * size ** 3 / best(lambda x: x @ x, square)
  read = line.nbytes / best(jnp.sum, line)
  parts = len(devices) if on_cpu else 1
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
