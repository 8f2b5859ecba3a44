"""A batch of rows: the columns that stages fill, one after another, and that methods read by name.

Rows B come in groups of G samples of a prompt, one after another; T is the number of response
positions, L that of prompt positions.
"""

import dataclasses
from typing import Any

import jax

from entrolab.typing import Array, Bool, Float, Int

UNFILLED: Any = None  # of a column that is always there once its stage is through


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """The columns of a batch; None until a stage fills them, top to bottom.

  A column of type `... | None` may be absent when it is read; the others are there once their stage
  (rollout, verifier, objective) is through.
  """

  # of the rollout
  tokens: Int[Array, "B T"] = UNFILLED  # of the response, padded behind it
  mask: Bool[Array, "B T"] = UNFILLED  # response tokens that count
  present: Bool[Array, "B T"] | None = None  # those that stand in the context; None: as the mask
  prompt: Int[Array, "B L"] = UNFILLED  # left padded
  prompt_mask: Bool[Array, "B L"] = UNFILLED  # real tokens of the prompt
  group: Int[Array, " B"] = UNFILLED  # the prompt of a row
  row: Int[Array, "B 2"] = UNFILLED  # key data (uint32): the identity of a row
  finished: Bool[Array, " B"] = UNFILLED  # ended by a stop token
  # of the policy that sampled, nats, untruncated at temperature 1
  old_logp: Float[Array, "B T"] | None = None  # log-prob of the token
  old_entropy: Float[Array, "B T"] | None = None  # of the distribution
  sampled_logp: Float[Array, "B T"] | None = None  # under the distribution that was drawn from
  phase: Int[Array, "B T"] | None = None  # the step or turn of a token
  ref_logp: Float[Array, "B T"] | None = None  # under the reference policy
  # of the verifier: 1 right, 0 wrong, -1 unknown
  verdict: Int[Array, " B"] = UNFILLED
  # of the objective: whether a row is learned from. One that is not, since nobody knows its verdict
  # or what it is compared with, is in no statistic of a batch and in no denominator; None: all are
  known: Bool[Array, " B"] | None = None
  rewards: Float[Array, " B"] = UNFILLED  # of the responses; NaN where not known
  adv: Float[Array, "B T"] | None = None  # advantages of the tokens
  scale: Float[Array, "B T"] | None = None  # how tokens add up in the loss
  noise: Float[Array, "B T"] | None = None  # uniform numbers that break ties of rankings
  # further columns of a rollout, by name
  extra: dict[str, Array] = dataclasses.field(default_factory=dict)

  def replace(self, **columns: Any) -> "Batch":
    """A copy with these columns filled; a name that is no column goes to `extra`."""
    extra = {name: columns.pop(name) for name in list(columns) if name not in COLUMNS}
    return dataclasses.replace(self, **columns, extra={**self.extra, **extra})

  @property
  def counted(self) -> Bool[Array, "B T"]:
    """The response tokens that are learned from: those of `mask` in rows that are known."""
    return self.mask if self.known is None else self.mask & self.known[:, None]

  def columns(self) -> dict[str, Any]:
    """The filled columns by name."""
    declared = {name: getattr(self, name) for name in COLUMNS}
    return {name: x for name, x in {**declared, **self.extra}.items() if x is not None}


COLUMNS = tuple(field.name for field in dataclasses.fields(Batch) if field.name != "extra")
# of these the columns that are flags
FLAGS = {"mask", "present", "prompt_mask", "finished", "known"}
