"""CURE: cut responses at an uncertain token, sample on from there, learn from all as one group.

CURE: Critical-Token-Guided Re-Concatenation for Entropy-Collapse Prevention (arXiv:2508.11016,
2025). Official code: bytedance/CURE, recipe/CURE_First_Stage/dapo_ray_trainer.py.
Acts on: rollout.  State: none.
Differs from the official code: (1) which tokens may be cut at is a table [V] made once, not a
decoder in the loop; (2) padding is outside the mask, theirs goes by its id; (3) equal entropies
keep their order. Advantage and loss are DAPO's: `grpo.group_advantage` over the whole group,
`ppo.clipped_ratio(low=0.2, high=0.28, dual=10.0)`, the token mean; stage 2 is DAPO alone.

A group of n1 + n1 n2 rows: n1 responses to the prompt, then for each of them in order n2
continuations. A continuation is a separate row: the prefix belongs to its prompt, its
log-probabilities are taken in that context, and only new tokens are in its mask.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from entrolab.arguments import checked
from entrolab.ranks import grouped
from entrolab.typing import Advantage, Array, Bool, Float, Int, real


def admissible(texts: Sequence[str], special: Iterable[int] = ()) -> np.ndarray:
  """bool [V]: tokens that may be cut at: not special, and over one character without blanks."""
  allowed = np.array([len(text.strip()) > 1 for text in texts], bool)
  allowed[list(special)] = False
  return allowed


@checked
def candidates(old_entropy: Float[Array, "B T"], tokens: Int[Array, "B T"],
               mask: Bool[Array, "B T"], allowed: Bool[Array, " V"], *,
               most: int = 20) -> Int[Array, "B K"]:
  """The `most` admissible positions of highest entropy in each row, descending, then -1.

  Position 0 is not one of them. old_entropy: nats, at the temperature of the draw; random noise
  in its place chooses at random, the paper's ablation.
  """
  positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  able = mask & allowed[tokens] & (positions > 0)
  order = jnp.argsort(jnp.where(able, -old_entropy, jnp.inf), axis=1, stable=True)
  chosen = jnp.where(jnp.take_along_axis(able, order, axis=1), order, -1)[:, :most]
  short = max(most - chosen.shape[1], 0)
  return jnp.pad(chosen.astype(jnp.int32), ((0, 0), (0, short)), constant_values=-1)


@checked
def branch_point(choices: Int[Array, "B K"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
  """One candidate of each row, all alike, by a number in [0, 1); 0 where there is none."""
  count = (choices >= 0).sum(1, dtype=jnp.int32)
  at = jnp.minimum(jnp.floor(uniform * count.astype(uniform.dtype)).astype(jnp.int32), count - 1)
  picked = jnp.take_along_axis(choices, jnp.maximum(at, 0)[:, None], axis=1)[:, 0]
  return jnp.where(count > 0, picked, 0)


@checked
def reprompt(prompt: Int[Array, "B L"], prompt_mask: Bool[Array, "B L"], tokens: Int[Array, "B T"],
             branch: Int[Array, " B"], *, overflow: Literal["move", "skip"] = "move"
             ) -> tuple[Array, Array, Array]:
  """(prompt, mask, positions) [B, L] of prompt + tokens[:branch], left padded as before.

  The token at `branch` is sampled anew. What does not fit into L moves the branch forward to
  L - length, or with "skip" gives the bare prompt. Raises ValueError for another overflow.
  """
  if overflow not in ("move", "skip"):
    raise ValueError(f"reprompt(overflow={overflow!r}); choices: 'move', 'skip'")
  room = (~prompt_mask).sum(1, dtype=jnp.int32)
  shift = jnp.minimum(branch, room)
  if overflow == "skip":
    shift = jnp.where(branch > room, 0, shift)
  positions = jnp.arange(prompt.shape[1], dtype=jnp.int32)[None]
  both = jnp.concatenate([prompt, tokens.astype(prompt.dtype)], axis=1)
  first = (room - shift)[:, None]
  return (jnp.take_along_axis(both, positions + shift[:, None], axis=1), positions >= first,
          jnp.maximum(positions - first, 0))


def family(originals: int = 4, branches: int = 3) -> tuple[np.ndarray, np.ndarray]:
  """(kind, parent) of the rows of a group: kind 0 original, 1 continuation; parent counts in the
  group and is the row itself for an original."""
  of_originals = np.arange(originals)
  kind = np.repeat([0, 1], [originals, originals * branches])
  return kind, np.concatenate([of_originals, np.repeat(of_originals, branches)])


def regroup(original: Array, continued: Array, *, originals: int = 4) -> Array:
  """[P n1, ...] and [P n1 n2, ...], prompts in order, to [P (n1 + n1 n2), ...], groups
  contiguous."""
  groups = grouped(original, originals)
  more = grouped(continued, continued.shape[0] // groups.shape[0])
  return jnp.concatenate([groups, more], axis=1).reshape(-1, *original.shape[1:])


@checked
def family_advantage(adv: Float[Array, "B T"], mask: Bool[Array, "B T"],
                     row_kind: Int[Array, " B"], parent: Int[Array, " B"],
                     branch: Int[Array, " B"], known: Bool[Array, " B"] | None = None, *,
                     size: int) -> Advantage:
  """On tokens of an original that continuations share, the mean A of all rows that contain them.

  A tree counts a shared prefix once: in the row of the original, at the advantage that k copies of
  it in k rows would have with weights 1 / k. Equal to those for surrogates that are linear in A,
  and for clipped ones where no ratio is clipped. A continuation that is not known shares in
  nothing. Stands last in a chain that gives every token of
  a row the same A; CURE itself teaches a prefix by its original's outcome alone.
  """
  rows = grouped(adv[:, 0], size)  # every response begins at position 0
  before = jnp.arange(adv.shape[1], dtype=jnp.int32)[None] < branch[:, None]
  continued = row_kind == 1 if known is None else (row_kind == 1) & known
  shares = grouped(real(before & continued[:, None]), size).astype(adv.dtype)
  of = grouped(parent, size)[:, :, None] == jnp.arange(size, dtype=jnp.int32)[None, None]
  family = lambda x: jnp.einsum("pjr,pjt->prt", of.astype(adv.dtype), x, precision="highest")
  mean = (rows[..., None] + family(shares * rows[..., None])) / (1.0 + family(shares))
  shared = jnp.where((row_kind == 0)[:, None], mean.reshape(adv.shape), adv)
  return jnp.where(mask, shared, 0.0)
