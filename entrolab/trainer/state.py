"""The state of a run: what updates change and a checkpoint stores.

State that is kept is finite: no update is accepted, no checkpoint is written and none is gone on
from, whose parameters or moments are not.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entrolab import control
from entrolab.models.transformer import Params
from entrolab.typing import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """All that changes from step to step."""

  step: Int[Array, ""]  # optimiser steps that were taken
  params: Params  # of the policy, float32
  opt: optax.OptState  # of the optimiser: moments and counts
  control: control.State  # controlled values by name
  reference: Params | None = None  # the policy behind `ref_logp`; None where no term reads it
  # in a checkpoint alone: what the rollout strategy remembers, and rows that were drawn ahead
  host: dict[str, Array] | None = None


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their path, such as `params.layers.qkv`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def not_finite(tree: Any) -> dict[str, Bool[Array, ""]]:
  """Whether any entry of a leaf is NaN or infinite, for each leaf of floats, by its path."""
  return {name: ~jnp.isfinite(x).all() for name, x in by_path(tree).items()
          if jnp.issubdtype(x.dtype, jnp.floating)}


_not_finite = jax.jit(not_finite)


def names(flags: Mapping[str, Any]) -> list[str]:
  """Of the flags that are set."""
  return [name for name, flag in flags.items() if bool(np.asarray(flag))]


def check_finite(state: State, when: str) -> None:
  """Raises FloatingPointError that names leaves of parameters or moments that are not finite."""
  wrong = names(_not_finite({"parameters": state.params, "moments": state.opt}))
  if wrong:
    raise FloatingPointError(f"{when}: {shortened(wrong)} not finite")


def shortened(found: list[str], most: int = 3) -> str:
  """The first of some names, and how many more there are."""
  more = f" and {len(found) - most} more" if len(found) > most else ""
  return ", ".join(found[:most]) + more
