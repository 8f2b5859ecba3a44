"""SECURITY.md's table of what runs where: each of its rows is checked, and no row is missing."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from entrolab.environments.adapters import Gym
from entrolab.environments.tools import Python
from entrolab.verify import code
from entrolab.verify.code import Case, Command, Functions
from entrolab.verify.sandbox.outside import Limits, Sandbox, SandboxError
from entrolab.verify.workers.pool import Job, Pool
from tests.evaluating_environment import Located

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "entrolab").rglob("*.py"))
# libraries that read what a policy wrote, and the only module that imports each of them
THIRD_PARTY = {"math_verify": "verify/symbolic/compare.py", "reasoning_gym": "verify/reasoning.py",
               "sympy": "verify/symbolic/compare.py", "latex2sympy2_extended":
               "verify/symbolic/compare.py", "gymnasium": ""}
STATUS = "[line for line in open('/proc/self/status') if line.startswith(('NoNewP', 'Seccomp:'))]"
CONFINED = ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"]


def rows() -> dict[str, str]:
  """What a policy wrote -> the process that evaluates it, of the table."""
  text = (ROOT / "SECURITY.md").read_text().partition("## What runs where")[2]
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
           if line.startswith("| ")]
  return {first: process for first, _, process in cells[2:]}


@pytest.fixture(scope="module")
def box():
  try:
    return Sandbox(limits=Limits(seconds=30.0))
  except SandboxError as error:
    pytest.skip(str(error))


def importers(library):
  """Modules of the package that import a library, also within functions."""
  found = set()
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
      if any(name.split(".")[0] == library for name in names):
        found.add(str(path.relative_to(ROOT / "entrolab")))
  return found


def in_a_worker(where):
  """Whether [pid, NoNewPrivs, Seccomp] is that of a confined process which is not this one."""
  return where[0] != os.getpid() and where[1:] == [1, 2]


def workers_confine():
  with Pool("tests.dying_service", 1, seconds=30.0) as pool:
    result, = pool.run([Job(None, ("where",))])
  return in_a_worker(result.value)


def math_answers(box):
  assert importers("math_verify") == {THIRD_PARTY["math_verify"]} and workers_confine()


def gym_answers(box):
  assert importers("reasoning_gym") == {THIRD_PARTY["reasoning_gym"]} and workers_confine()


def environments(box):
  gym = Gym(Located, show=json.dumps)
  assert in_a_worker(json.loads(gym.reset(gym.examples("train", 0)[0])[1]))


def functions(box):
  task = Functions(("f",), (f"assert f() == {CONFINED}, f()",))
  assert code.verify([f"def f(): return {STATUS}"], [task], sandbox=box)[0][0].status == "right"


def commands(box):
  task = Command((os.path.realpath(sys.executable), "{file}"), (Case("f()", str(CONFINED)),))
  verdict = code.verify([f"def f(): print({STATUS})"], [task], sandbox=box)[0][0]
  assert verdict.status == "right", verdict


def tools(box):
  assert Python(Limits(seconds=30.0))([STATUS]) == [str(CONFINED)]


QUIET = """
import sys
from entrolab.environments import calculator, forms, text_world
from entrolab.environments.tools import ToolUse
from entrolab.tasks.arithmetic import Arithmetic
from entrolab.tasks.countdown import Countdown
from entrolab.verify import (
    canonical, choice, constraints, countdown, exact, extract, fences, math, vote)
path = sys.argv[1]
run = f"__import__('pathlib').Path({path!r}).write_text('x')"
texts = [run, f"\\\\boxed{{{run}}}", f"<answer>{run}</answer>", f"```python\\n{run}\\n```",
         "(" * 500, f"calc {run}", f"answer {run}", f"The answer is {run}",
         "9**9**9**9", "{0.__class__}"]
form, world, words = forms.Form(3), text_world.TextWorld(), calculator.WordProblems()
tool = ToolUse(Countdown(), tool=lambda programs: list(programs))
tasks = (Countdown(), Arithmetic(), form, world, words, tool)
examples = [(task, task.examples("train", 0)[0]) for task in tasks]
math.quick("7", "x")
events = []
sys.addaudithook(lambda event, args: events.append(event) if event.startswith(
    ("exec", "open", "subprocess", "os.", "socket", "ctypes", "marshal", "pickle")) else None)
for text in texts:
  for task, example in examples:
    task.verify([text], [example])
    task.key(text)
  tool.program(text)
  fences.program_of(text, ("python",), ("f",))
  vote.key(text)
  math.quick("7", canonical.canonical(extract.extract(text).text))
  choice.letter(text)
  exact.first_integer(text)
  constraints.verify([text], [{"num_bullets": 1}], [""])
  countdown.check_expression(text, [1, 2], 3)
print(events)
"""


def trainer(box):
  """Parsers of this package: hostile text runs no code and opens no file."""
  path = ROOT / "no-such-file-written"
  done = subprocess.run([sys.executable, "-c", QUIET, str(path)], cwd=ROOT, capture_output=True,
                        text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().splitlines()[-1] == "[]" and not path.exists()


CHECKS = {
    "a mathematical answer that needs algebra": ("child of a worker", math_answers),
    "an answer to a problem of reasoning-gym": ("child of a worker", gym_answers),
    "an action for an environment of gymnasium": ("child of a worker", environments),
    "Python functions that tests call": ("sandbox", functions),
    "a program for a command": ("sandbox", commands),
    "a program for the Python tool": ("sandbox", tools),
    "any other answer or action, a vote's key, fences, tags":
        ("trainer: nothing is evaluated", trainer)}


def test_every_row_of_the_table_is_checked():
  assert rows() == {written: process for written, (process, _) in CHECKS.items()}


@pytest.mark.parametrize("written", CHECKS)
def test_what_runs_where(written, box):
  CHECKS[written][1](box)


@pytest.mark.parametrize("library", THIRD_PARTY)
def test_third_party_code_is_imported_by_its_service_alone(library):
  assert importers(library) <= {THIRD_PARTY[library]}
