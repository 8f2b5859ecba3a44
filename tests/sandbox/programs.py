"""What the tests of programs share: sandboxes with other limits, and verdicts on Python answers."""

import pathlib

from entrolab.verify import code
from entrolab.verify.code import Functions
from entrolab.verify.sandbox.outside import Limits, Sandbox

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOUBLE = Functions(("f",), ("assert f(3) == 6", "assert f([1]) == [1, 1]", "assert f('') == ''"))


def with_limits(box: Sandbox, **limits) -> Sandbox:
  """The same kind of sandbox with other limits."""
  batch = limits.pop("batch_seconds", 600.0)
  return Sandbox(box.kind, limits=Limits(**limits), batch_seconds=batch)


def verdicts(box, programs, *tests, names=("f",), setup=""):
  """The verdict on each program by the same tests."""
  task = Functions(names, tests, setup)
  return [verdict for verdict, _ in code.verify(programs, [task] * len(programs), sandbox=box)]
