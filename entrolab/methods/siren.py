"""SIREN: entropy inside the nucleus, at the peaks of each response, kept near its first value.

Rethinking Entropy Regularization in Large Reasoning Models (arXiv:2509.25133, 2025). Official
code: Linn3a/siren, verl/verl/workers/actor/dp_actor.py and verl/trainer/ppo/ray_trainer.py.
Acts on: penalty, controller.  State: anchor.
Differs from the official code: (1) the mean and its square are those of the whole optimiser batch,
theirs of each micro-batch (`scope="micro"`); (2) positions are always inside the mask; (3) the
anchor is the statistic of the first rollout, as theirs since 2025-12-10, without their row
reordering fault; (4) the nucleus excludes the token that crosses top_p, as theirs; the paper's
words allow `inclusive=True`; (5) theirs is searched among the 10,000 largest logits and cannot be
larger, which a flat row of a large vocabulary shows; ours has no such limit; (6) theirs adds 1e-12
to the mass of the nucleus and inside the logarithm, so that in float64 a nucleus of one token has
an entropy above 0 (4.3e-13 at probability 0.7); ours is 0, since one outcome has no entropy. The
nucleus is `vocab.Spec(top_p=0.8)` of the objective.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from entrolab.aggregate import per_row
from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.ranks import quantile
from entrolab.typing import Array, Bool, Float, Outer, Penalty, Scale, real


@checked
def selected_entropy(nucleus_entropy: Float[Array, "B T"]) -> Penalty:
  """Entropy of the renormalised nucleus of the current policy, nats.

  d h / d z_v = -q_v (log q_v + h) inside the nucleus and 0 outside: tail logits get no gradient.
  """
  return nucleus_entropy


@checked
def peak_positions(nucleus_entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
                   fraction: float = 0.2) -> Array:
  """bool [B, T]: tokens strictly above their row's (1 - fraction) quantile (linear).

  A row of equal entropies has none. fraction: 0.2 is the official mask_ratio of 0.8.
  """
  return mask & (nucleus_entropy > quantile(nucleus_entropy, mask, 1.0 - fraction, rows=True))


@checked
def peak_scale(nucleus_entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
               known: Bool[Array, " B"] | None = None, *, fraction: float = 0.2) -> Scale:
  """Mean over ALL rows of the mean over their peak positions; a row without any counts as 0.

  known: the rows that are counted; None: all.
  """
  on = real(peak_positions(nucleus_entropy, mask, fraction=fraction))
  return per_row(on / jnp.maximum(on.sum(-1, keepdims=True), 1.0), known)


@checked
def squared_distance(mean: Float[Array, ""], anchor: Float[Array, ""]) -> Outer:
  """(H - anchor)^2 of the aggregated entropy H: nats squared."""
  return jnp.square(mean - anchor)


@dataclasses.dataclass(frozen=True)
class Anchor(Controller):
  """`anchor`: the aggregated entropy of the first rollout before any update; constant after.

  Until it has been measured the anchor is NaN.
  """
  value: float = -1.0  # nats; 0 or more fixes the anchor there, and nothing is measured

  def init(self) -> State:
    return {"anchor": jnp.asarray(self.value if self.value >= 0.0 else jnp.nan, float)}

  def begin(self, state: State, means: Mapping[str, Array]) -> State:
    return state if self.value >= 0.0 else {"anchor": means["siren.selected_entropy"]}
