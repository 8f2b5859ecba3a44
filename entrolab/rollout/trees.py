"""How trees of rollouts grow by the rule of `methods.aepo_agentic`, whatever draws their segments.

A segment is what a rollout draws until it calls a tool. After the tool's answer the rule may copy
rollouts, and copy and source go on with different random numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from entrolab.methods.aepo_agentic import Branching, Tree


class Segments(NamedTuple):
  """What a round brought, in the order of the rows that were drawn."""
  entropy: Sequence[float]  # of each segment, as the rule measures it
  calls_tool: Sequence[bool]  # whether it calls a tool and there is room for the answer
  uniform: Callable[[int], float]  # row -> the row's next random number, by which it branches


class TreeRows(Protocol):
  """The rows in which trees grow: those of prompt p are p n, ..., p n + n - 1, as they start."""

  def add(self, new: Sequence[tuple[int, int | None]]) -> None:
    """New rows, each with the row that it copies, to the tool's answer; None: a fresh start."""
    ...

  def draw(self, rows: Sequence[int]) -> Segments:
    """The next segment of each of these rows."""
    ...

  def any_active(self, active: bool) -> bool:
    """Whether any process has active rows, as this one does or not."""
    ...


def rows_of(tree: Tree, samples: int) -> list[int]:
  """The row of every rollout, `samples` of them a prompt."""
  started = [0] * len(tree.streaks)
  rows = []
  for rollout in tree.rollouts:
    rows.append(rollout.prompt * samples + started[rollout.prompt])
    started[rollout.prompt] += 1
  return rows


def grow(rule: Branching, initial: Sequence[int], rows: TreeRows) -> Tree:
  """Starts `initial` rollouts of each prompt, and goes round by round until none is active."""
  tree = rule.start(initial)
  at = rows_of(tree, rule.samples)
  rows.add([(row, None) for row in at])
  while rows.any_active(bool(tree.active)):
    segments = rows.draw([at[i] for i in tree.active])
    before = tree
    tree = rule.advance(before, segments.entropy, segments.calls_tool,
                        lambda i, at=at, segments=segments: segments.uniform(at[i]))
    # a copy has the path of its source, whose last segment is of this round and of no other rollout
    sources = {tree.rollouts[i].path: at[i] for i in before.active}
    at = rows_of(tree, rule.samples)
    new = range(len(before.rollouts), len(tree.rollouts))
    rows.add([(at[i], sources.get(tree.rollouts[i].path)) for i in new])
  return tree
