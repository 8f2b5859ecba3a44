"""The state of a run: what updates change and a checkpoint stores."""

import dataclasses

import jax
import optax

from entrolab import control
from entrolab.models.transformer import Params
from entrolab.typing import Array, Int


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
