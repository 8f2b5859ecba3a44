"""How trees grow: the golden traces of the official code, and whose rounds a streak counts."""

import pathlib

import numpy as np
import pytest

from entrolab.methods.aepo_agentic import Branching, aepo_test, arpo_test
from entrolab.rollout.trees import Segments, grow
from tests import adapters

GOLDEN = sorted(pathlib.Path(__file__).parent.glob("golden/aepo_agentic_*branch_*.npz"))


class Scripted:
  """Rows out of a golden file: two tokens a segment, two for the tool's answer."""

  def __init__(self, case, calls):
    self.entropy = case.raw("segment_entropy")
    self.calls_tool = case.raw("segment_is_tool_call") > 0
    self.draws, self.calls, self.widths = iter(case.raw("uniform_draws").tolist()), calls, []
    self.path, self.mask, self.made = {}, {}, {}

  def any_active(self, active):
    return active

  def draw(self, rows):
    call, first = len(self.widths), sum(self.widths)
    self.widths.append(len(rows))
    for at, row in enumerate(rows):
      self.path[row].append(first + at)
      self.mask[row] += [1, 1]
      if self.calls_tool[call, at]:
        room = self.made[row] < self.calls
        self.mask[row] += [0, 0] if room else [1]  # an answer, or the end at the limit
        self.made[row] += 1
    return Segments(self.entropy[call], self.calls_tool[call], lambda row: next(self.draws))

  def add(self, new):
    for row, of in new:
      assert row not in self.path
      copy = lambda of_all, empty, of=of: of_all[of].copy() if of is not None else empty
      self.path[row], self.mask[row] = copy(self.path, []), copy(self.mask, [])
      self.made[row] = 0 if of is None else self.made[of]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_the_strategy_grows_the_golden_trees(path):
  """What `Agentic` does with real episodes, with rows that read the official traces."""
  case = adapters.Case(path)
  knobs = case.config
  rule = Branching(
      samples=knobs["n"], beam=knobs["beam_size"], probability=knobs["branch_probability"],
      weight=knobs["entropy_weight"], penalty=knobs["consecutive_penalty"],
      calls=knobs["tool_call_limit"],
      test=arpo_test if knobs["variant"] == "arpo" else aepo_test)
  script = Scripted(case, rule.calls)
  grow(rule, [knobs["initial_rollouts"]] * knobs["prompts"], script)
  assert sorted(script.path) == list(range(knobs["n"] * knobs["prompts"]))  # all rows filled
  want = {name: case.raw(name) for name in ("paths", "response_loss_mask")}
  for name, got, empty in (("paths", script.path, -1), ("response_loss_mask", script.mask, 0)):
    width = want[name].shape[1]
    rows = [[*got[row], *[empty] * (width - len(got[row]))] for row in sorted(got)]
    np.testing.assert_array_equal(rows, want[name], err_msg=name)
  np.testing.assert_array_equal(script.widths, case.raw("active_per_call"))
  assert len(script.widths) == case.raw("n_calls")
  assert len(case.raw("uniform_draws")) - len(list(script.draws)) == case.raw("n_draws_used")


def test_there_are_golden_trees_of_both_rules():
  assert {"arpo" in path.stem for path in GOLDEN} == {True, False}


def test_a_streak_of_its_own_does_not_depend_on_other_prompts():
  """Two prompts together, and each alone: the same trees under "own", not under "prompt"."""
  def trees(scope, prompts):
    rule = Branching(samples=12, beam=3, probability=0.75, weight=0.4, penalty=0.4, calls=8,
                     scope=scope)
    out = []
    for only in prompts:
      made = Dice(only, 12)
      grow(rule, [2] * len(only), made)
      out.append({(only[s // 12], s % 12): path for s, path in made.path.items()})
    return out

  for scope, equal in (("own", True), ("path", True), ("prompt", False)):
    both, first, second = trees(scope, [(0, 1), (0,), (1,)])
    assert (both == first | second) is equal, scope


class Dice:
  """Rows whose numbers belong to a prompt, a place in its group and a round of the row."""

  def __init__(self, prompts, samples):
    self.prompts, self.samples, self.path = prompts, samples, {}

  def any_active(self, active):
    return active

  def draw(self, rows):
    seed = lambda row: [self.prompts[row // self.samples], row % self.samples,
                         len(self.path[row])]
    dice = {row: np.random.default_rng(seed(row)) for row in rows}
    h = [dice[row].gamma(2.0, 0.3) for row in rows]
    calls_tool = [dice[row].random() < 0.85 for row in rows]
    for row in rows:
      self.path[row].append(row % self.samples)
    return Segments(h, calls_tool, lambda row: dice[row].random())

  def add(self, new):
    for row, of in new:
      self.path[row] = [] if of is None else self.path[of].copy()
