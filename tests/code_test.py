"""Programs in their sandboxes: verdicts, what crosses, and every way out that has been tried."""

import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from entrolab.verify import code, codes, confined, seccomp
from entrolab.verify.code import Case, Command, Functions, Score, reward
from entrolab.verify.sandbox import KINDS, Limits, Sandbox, SandboxError

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEEDLE = 918273645019             # what the tests expect, and a program must not find
DOUBLE = Functions(("f",), ("assert f(3) == 6", "assert f([1]) == [1, 1]", "assert f('') == ''"))


@pytest.fixture(scope="module", params=KINDS)
def box(request):
  try:
    return Sandbox(request.param, limits=Limits(seconds=30.0))
  except SandboxError as error:
    pytest.skip(str(error))


def with_limits(box: Sandbox, **limits) -> Sandbox:
  """The same kind of sandbox with other limits."""
  batch = limits.pop("batch_seconds", 600.0)
  return Sandbox(box.kind, limits=Limits(**limits), batch_seconds=batch)


def verdicts(box, programs, *tests, names=("f",), setup=""):
  task = Functions(names, tests, setup)
  return [verdict for verdict, _ in code.verify(programs, [task] * len(programs), sandbox=box)]


def test_reward_is_the_fraction_and_a_bonus():
  assert reward(Score(2, 3)) == pytest.approx(2 / 3) and reward(Score(3, 3)) == 2.0
  assert reward(Score(2, 3), base=0) == 0.0 and reward(Score(3, 3), base=0) == 1.0
  assert reward(Score(3, 3), bonus=0) == 1.0 and reward(Score(0, 0)) == 0.0


@pytest.mark.parametrize("text, program", [
    ("x = 1", "x = 1"),
    ("so\n```python\nx = 1\n```\nor\n```\ny\n```\n", "x = 1\n"),
    ("```py\nold\n```\n```python\n  new\n```", "  new\n"),
    ("```python\nno\n```</think>text\n```\nx\n```", "x\n"),
    ("```python\nno\n```<answer>x = 2</answer>", "x = 2"),
    ("```python\nx = 3", "\nx = 3"), ("", "")])
def test_the_program_of_an_answer(text, program):
  assert code.program_of(text, ("python", "py")) == program


def test_tasks_and_limits_are_checked_where_they_are_written(box):
  with pytest.raises(ValueError, match="needs names and tests"):
    Functions(("f",), ())
  with pytest.raises(ValueError, match="needs cases and {file}"):
    Command(("sh",), (Case("", ""),))
  with pytest.raises(ValueError, match=r"Limits\(memory=0\)"):
    Limits(memory=0)
  with pytest.raises(ValueError, match="sandbox kind 'docker'; choices: bwrap, seccomp"):
    Sandbox("docker")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="1 texts for 0 tasks"):
    code.verify([""], [], sandbox=box)
  with pytest.raises(ValueError, match="row 0: interpreter 'no-such-q' is not on PATH"):
    code.verify([""], [Command(("no-such-q", "{file}"), (Case("", ""),))], sandbox=box)


def test_verdicts_and_fractions(box):
  programs = {
      "def f(x): return x * 2": (1, 3, ""),
      "```python\nimport math\nf = lambda x: x + x\n```": (1, 3, ""),
      "def f(x): return 6 if x == 3 else None": (0, 1, "test 2: AssertionError"),
      "def f(x): return 2 * x if x else 1 / 0": (0, 2, "test 3: ZeroDivisionError"),
      "def f(x): import": (0, 0, "the program raises SyntaxError"),
      "g = 1": (0, 0, "the program defines no f"),
      "def f(x): return object()": (0, 0, "returns no plain data"),
      " \n": (0, 0, "no program"),
      "#" * 300_000: (0, 0, "at most 200000"),
      "\0": (0, 0, "the program raises"), "x = '\ud800'": (0, 0, "the program raises")}
  found = code.verify(list(programs), [DOUBLE] * len(programs), sandbox=box)
  for (verdict, score), (status, passed, why) in zip(found, programs.values(), strict=True):
    assert (verdict.code, score.passed, score.total) == (status, passed, 3), verdict
    assert why in verdict.why


def test_what_crosses_keeps_its_type(box):
  tests = [f"assert f({value}) == {value} and type(f({value})) is type({value})" for value in (
      "None", "True", "-1", "10 ** 5000", "0.1", "1e400", "2j", "'\\ud800\\0é'", "b'\\xff'",
      "bytearray(b'a')", "[1, (2, [3])]", "(1, 2)", "{1, 2}", "frozenset('ab')", "range(9)",
      "{(1, 2): {'a': [None]}, 3: ()}")]
  tests += ["assert f((1,)) != [1]", "x = f(float('nan')); assert x != x",
            "assert g(4) != [0, 1, 2, 3] and sum(g(4)) == 6", "assert h() == {'a': 2}",
            "assert f(x=5) == 5"]
  program = """
import collections
def f(x): return x
def g(n): yield from range(n)
def h(): return collections.Counter("aa")
"""
  verdict, = verdicts(box, [program], *tests, names=("f", "g", "h"))
  assert verdict.status == "right", verdict


def test_exceptions_cross_by_name(box):
  test = "try:\n  f()\nexcept {}:\n  pass\nelse:\n  assert False"
  program = "class Own(Exception): pass\ndef f(): raise {}"
  right = verdicts(box, [program.format("ValueError('no')")], test.format("ValueError"))
  wrong = verdicts(box, [program.format(what) for what in (
      "KeyError", "Own()", "SystemExit(0)", "KeyboardInterrupt")], test.format("ValueError"))
  bare = verdicts(box, [program.format("SystemExit")], test.format("BaseException"))
  assert codes(right) == [1] and codes(wrong) == [0] * 4 and codes(bare) == [0]


@pytest.mark.parametrize("test, why", [
    ("assert f(", "test 1 is no Python"), ("assert f(1) == unheard_of", "NameError"),
    ("import unheard_of", "ModuleNotFoundError"), ("assert f(lambda: 1) == 1", "no plain data"),
    ("import os; os._exit(0)", "the tests ended early"), ("f('x' * 2_000_000)", "can cross")])
def test_tests_at_fault_leave_it_unknown(box, test, why):
  verdict, = verdicts(box, ["def f(x): return x"], test)
  assert verdict.status == "unknown" and why in verdict.why, verdict


def test_one_program_has_one_verdict(box):
  program = "import random\ndef f(): return [random.random(), hash('a'), str({'a', 'b', 'c'})]"
  first, second = verdicts(box, [program] * 2, "assert f() is None or print(f())", "assert f()[1]")
  assert first == second
  echo = "import random\ndef f(x): return x == [random.random(), hash('a')]"
  assert verdicts(box, [echo], "import random\nassert f([random.random(), hash('a')])"
                  )[0].status == "right"
