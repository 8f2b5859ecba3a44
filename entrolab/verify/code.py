"""Programs as answers: run confined, and right only if every test passes.

A `Functions` task is Python: tests call functions that the answer defines. Tests and answer run in
two sandboxes (see `sandbox`). The tests report to the parent under a secret of this run, and an
answer is right only if the report after the last test arrives. A `Command` task is a program for
any interpreter, given as a command: each case appends a call to the answer, and the parent compares
what is printed with an expected text that never enters the sandbox (arXiv:2508.06813).

What a program printed that did not reach its end proves nothing. A case appends to its call what
prints a secret of this run, and counts if that arrives. A program can read the secret in its own
file; that gains nothing, since one that prints nothing can as well end as it should. Where nothing
is called, or no text is known that prints, a case counts if the program ends by itself with code 0.

right    every test passed
wrong    a test failed, the program raised or ended early, or the response has no program
unknown  over a deadline, a test looked at what cannot cross, or the tests themselves are at fault

Trust boundary. Trusted: the kernel, bwrap, the interpreter, this package. Not trusted: answers,
and tests, which come with data. Both run confined, and neither can make the parent raise. The tests
do decide the verdict: a weak or guessable test is rewarded as such. Answers can read the folders of
the interpreter, /usr and the sandbox's `read`, so reference solutions must be stored elsewhere.
Outside the boundary are flaws of the kernel or of bwrap, timing channels between programs, and
load: deadlines are wall time, so that on a busy machine more verdicts are unknown.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import re
import secrets
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from entrolab.verify import Verdict
from entrolab.verify.fences import program_of
from entrolab.verify.sandbox.outside import Run, Sandbox

MAX_CHARACTERS = 200_000  # of a program
LEAVE_SECONDS = 0.5  # in which a process whose output has ended ends by itself, or is killed
MAX_REASON = 300  # characters of a reason that a confined process gives


@dataclasses.dataclass(frozen=True, slots=True)
class Functions:
  """Python functions and tests that call them. Arguments and results cross by value, as plain data.

  Raises ValueError when there are no names or no tests.
  """
  names: tuple[str, ...]  # the functions of the answer that the tests call
  tests: tuple[str, ...]  # Python source; a test passes unless it raises
  setup: str = ""  # Python source that runs once, before the tests

  def __post_init__(self) -> None:
    if not self.names or not self.tests:
      raise ValueError(f"Functions needs names and tests; got {self.names} and {self.tests}")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
  """One call of a program."""
  call: str  # text that is appended to the program
  expected: str  # what it must print, apart from surrounding white space
  stdin: str = ""  # what it can read


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
  """A program for any interpreter, and the cases that it must pass.

  Blanks at the ends of lines do not count, line breaks do. Raises ValueError when there are no
  cases, or no {file} in `argv`.
  """
  argv: tuple[str, ...]  # the command; {file} stands for the path of the program
  cases: tuple[Case, ...]  # all of which it must pass
  suffix: str = ""  # of that file's name
  languages: tuple[str, ...] = ()  # of the fence around the program in a response
  # variables in addition to PATH, HOME and LANG
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # a line that prints what stands for {sign}; empty: that of the interpreter, if its name is known
  end: str = ""

  def __post_init__(self) -> None:
    if not self.cases or not any("{file}" in word for word in self.argv):
      raise ValueError(f"Command needs cases and {{file}} in its command; got {len(self.cases)} "
                       f"cases and {self.argv}")


  def ending(self, sign: str) -> str:
    """What prints a sign at the end of a program; empty for an interpreter that is not known."""
    names = [os.path.basename(word).rstrip("0123456789.") for word in self.argv]
    known = next((_PRINTS[name] for name in names if name in _PRINTS), "")
    return (self.end or known).replace("{sign}", sign)


# Lines that print {sign} to the descriptor, past what the program may have put in its place.
_PYTHON = "__import__('os').write(1, b'{sign}')"
_SHELL = "command printf %s {sign}"
_NODE = "require('fs').writeSync(1, '{sign}');"
_PRINTS = {
    "python": _PYTHON, "pypy": _PYTHON,
    "sh": _SHELL, "bash": _SHELL, "dash": _SHELL, "ksh": _SHELL, "zsh": _SHELL, "node": _NODE,
    "nodejs": _NODE, "ruby": "STDOUT.syswrite('{sign}')", "perl": "; print STDOUT '{sign}';",
    "lua": "io.write('{sign}')", "php": "; fwrite(STDOUT, '{sign}');", "Rscript": "cat('{sign}')",
    "julia": 'print("{sign}")', "q": '-1"{sign}";'}

Task = Functions | Command


def _sought(task: Task) -> tuple[Sequence[str], Sequence[str]]:
  """(languages, names that it must define) of the program in a response: what the calls name."""
  if isinstance(task, Functions):
    return ("python",), task.names
  return task.languages, re.findall(r"[^\W\d]\w*", " ".join(case.call for case in task.cases))


def _total(task: Task) -> int:
  return len(task.tests if isinstance(task, Functions) else task.cases)


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
  """The tests of a task that an answer passed."""
  passed: int  # tests that the answer passed
  total: int  # tests of the task


def reward(score: Score, *, base: float = 1.0, bonus: float = 1.0) -> float:
  """base * passed / total, plus bonus if all passed: base=0 is binary, bonus=0 the fraction."""
  share = score.passed / score.total if score.total else 0.0
  return base * share + (bonus if share == 1.0 else 0.0)


# How an item is decided: yields each run of confined processes, is sent "" when its output has
# ended or else the reason why it was stopped, and returns the result.
Steps = Generator[Run, str, tuple[Verdict, Score]]


def _report(data: bytes, secret: str) -> list[dict[str, Any]]:
  """The messages of the judge: lines of JSON that carry the secret.

  The parent trusts no byte that it reads: a line may be cut by the deadline, or written by a test.
  Messages without the secret are ignored; the secret itself is known to the judge alone.
  """
  messages = []
  for line in data.splitlines():
    with contextlib.suppress(ValueError, RecursionError):
      messages.append(json.loads(line))
  return [message for message in messages
          if isinstance(message, dict) and message.get("secret") == secret]


def _pair(box: Sandbox, task: Functions, source: str, secret: str) -> Run:
  """Starts judge and program in two sandboxes with pipes between them.

  The judge reports to the parent; the program has no descriptor that leads there. The arguments of
  a call go to the program, expected results stay with the judge.
  """
  calls, to_calls = os.pipe()  # judge to program
  answers, to_answers = os.pipe()  # program to judge
  report, to_report = os.pipe()  # judge to parent
  run = Run([], report, 4096 * (1 + len(task.tests)))
  judge = {"role": "judge", "secret": secret, "setup": task.setup, "names": task.names,
           "tests": task.tests, "text": "\n".join([task.setup, *task.tests]), "inbox": answers,
           "outbox": to_calls}
  program = {"role": "program", "text": source, "inbox": calls, "outbox": to_answers}
  try:
    run.processes.append(box.start(judge, to_report, (answers, to_calls)))
    run.processes.append(box.start(program, subprocess.DEVNULL, (calls, to_answers)))
  except BaseException:
    run.end()
    raise
  finally:
    # a pipe ends for its reader only when every copy of its writing end is closed
    for fd in (calls, to_calls, answers, to_answers, to_report):
      os.close(fd)
  return run


def _functions(box: Sandbox, task: Functions, source: str) -> Steps:
  """Decides an item of a `Functions` task by the judge's report."""
  secret = secrets.token_hex(16)
  total = len(task.tests)
  run = _pair(box, task, source, secret)
  stopped = yield run
  messages = _report(run.data, secret)
  # a process that ended before it was confined says nothing of the answer: that is an error here
  if any(message.get("gone") for message in messages):
    box.check_confined(run.status[1])
  if not messages and not stopped:
    box.check_confined(run.status[0])
  passed = sum(message.get("passed") is True for message in messages)
  score = Score(min(passed, total), total)
  faults = (str(message["unknown"])[:MAX_REASON] for message in messages if "unknown" in message)
  fault = stopped or next(faults, "")
  if not fault and not any("end" in message for message in messages):
    fault = "the tests ended early"  # such as a test that exits: what passed before proves nothing
  if fault:
    return Verdict("unknown", fault), score
  if score.passed == total:
    return Verdict("right", f"{total} tests passed"), score
  # a test that failed for certain decides, whatever could not cross in another one
  failed = [message for message in messages if message.get("passed") is False]
  decided = [message for message in failed if not message.get("undecided")]
  why = str(next(iter(decided or failed), {}).get("why", ""))[:MAX_REASON]
  status = "unknown" if failed and not decided else "wrong"
  return Verdict(status, f"{score.passed} of {total} tests passed; {why}"), score


def _same(output: bytes, expected: str) -> bool:
  """Equal apart from blanks at line ends and surrounding white space; an empty string may be
  printed as two quotes."""
  printed, wanted = ("\n".join(line.rstrip(" \t\r\f\v") for line in text.split("\n")).strip()
                     for text in (output.decode(errors="replace"), expected))
  return (printed if printed != '""' else "") == (wanted if wanted != '""' else "")


def _start_case(box: Sandbox, task: Command, argv: list[str | None], folder: str,
                case: Case) -> Run:
  """Starts the interpreter on one case; the expected text is not part of its orders."""
  report, to_report = os.pipe()
  run = Run([], report, box.limits.output, LEAVE_SECONDS)
  orders = {"role": "command", "argv": argv, "text": case.stdin,
            "environment": dict(task.environment)}
  try:
    run.processes.append(box.start(orders, to_report, folders=[folder]))
  except BaseException:
    run.end()
    raise
  finally:
    os.close(to_report)
  return run


def _fault(run: Run, case: Case, sign: str, known: bool) -> str:
  """Why a case has not passed; empty if it has. known: whether its program was to print the sign"""
  if len(run.data) > run.most:
    return f"over {run.most} bytes"
  at_end = run.data.count(sign.encode()) == 1
  if not at_end and (case.call and known or run.codes[0] != 0):
    return "the program did not reach its end"
  return "" if _same(run.data.replace(sign.encode(), b""), case.expected) else "another output"


def _command(box: Sandbox, task: Command, source: str) -> Steps:
  """Decides an item of a `Command` task: a sandbox for each case, one after the other."""
  passed, total = 0, len(task.cases)
  why = ""  # the first failure
  with tempfile.TemporaryDirectory(prefix="entrolab-") as folder:
    os.chmod(folder, 0o755)  # the program runs under another user id
    path = os.path.join(folder, "program" + task.suffix)
    argv = [shutil.which(task.argv[0]), *(word.replace("{file}", path) for word in task.argv[1:])]
    for number, case in enumerate(task.cases, 1):
      sign = secrets.token_hex(16)
      ending = task.ending(sign)
      with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(f"{source}\n\n{case.call}\n{ending}\n")
      run = _start_case(box, task, argv, folder, case)
      stopped = yield run
      if stopped:
        return Verdict("unknown", f"{stopped}, in case {number}"), Score(passed, total)
      box.check_confined(run.status[0])
      fault = _fault(run, case, sign, bool(ending))
      passed += not fault
      if fault and not why:
        why = f"; case {number}: {fault}"
  status = "right" if passed == total else "wrong"
  return Verdict(status, f"{passed} of {total} cases passed{why}"), Score(passed, total)


class _Batch:
  """The event loop of a call of `verify`: at most `box.size` items run at the same time."""

  def __init__(self, box: Sandbox, texts: Sequence[str], tasks: Sequence[Task]) -> None:
    self.box, self.tasks = box, tasks
    self.results: dict[int, tuple[Verdict, Score]] = {}  # by item
    self.waiting: collections.deque[tuple[int, str]] = collections.deque()  # item, program
    self.active: dict[int, tuple[Steps, Run, float]] = {}  # by item: steps, run, deadline
    self.end = time.monotonic() + box.batch_seconds
    for at, (text, task) in enumerate(zip(texts, tasks, strict=True)):
      source = program_of(text, *_sought(task))
      if not source.strip():
        self.results[at] = Verdict("wrong", "no program"), Score(0, _total(task))
      elif len(source) > MAX_CHARACTERS:
        why = f"a program of {len(source)} characters, at most {MAX_CHARACTERS} are read"
        self.results[at] = Verdict("wrong", why), Score(0, _total(task))
      else:
        self.waiting.append((at, source))

  def run(self) -> list[tuple[Verdict, Score]]:
    """The results in the order of the items."""
    try:
      while self.waiting or self.active:
        while self.waiting and len(self.active) < self.box.size:
          self._start(*self.waiting.popleft())
        self._wait()
      return [self.results[at] for at in range(len(self.tasks))]
    finally:  # also after Ctrl-C and SandboxError: no process stays
      for steps, run, _ in self.active.values():
        run.end()
        steps.close()

  def _start(self, at: int, source: str) -> None:
    """Starts an item, or leaves it unknown when the batch is over its deadline."""
    if time.monotonic() >= self.end:
      why = f"over the batch deadline of {self.box.batch_seconds:g} s"
      self.results[at] = Verdict("unknown", why), Score(0, _total(self.tasks[at]))
      return
    task = self.tasks[at]
    if isinstance(task, Functions):
      steps = _functions(self.box, task, source)
    else:
      steps = _command(self.box, task, source)
    self.active[at] = steps, next(steps), time.monotonic() + self.box.limits.seconds

  def _wait(self) -> None:
    """Waits for output or a deadline, reads what has arrived and ends the runs that are over."""
    now = time.monotonic()
    until = min([self.end, *(deadline for _, _, deadline in self.active.values())])
    with selectors.DefaultSelector() as selector:
      for at, (_, run, _) in self.active.items():
        selector.register(run.output, selectors.EVENT_READ, at)
      readable = [key.data for key, _ in selector.select(max(until - now, 0.0))]
    now = time.monotonic()
    for at, (_, run, deadline) in list(self.active.items()):
      # output first: an item that ended in time is not cut by a deadline that passed meanwhile
      if at in readable and run.read():
        self._next(at, "")
      elif now >= self.end:
        self._next(at, f"over the batch deadline of {self.box.batch_seconds:g} s")
      elif now >= deadline:
        self._next(at, f"over the deadline of {self.box.limits.seconds:g} s")

  def _next(self, at: int, stopped: str) -> None:
    """Ends a run and continues with the item's next one, or stores its result.

    The deadline is the item's, not the run's: all cases of a command share it.
    """
    steps, run, deadline = self.active.pop(at)
    run.end()
    try:
      self.active[at] = steps, steps.send(stopped), deadline
    except StopIteration as stop:
      self.results[at] = stop.value


@functools.cache
def shared() -> Sandbox:
  """The sandbox of this process, chosen at the first call. Raises SandboxError if none works."""
  return Sandbox()


def verify(texts: Sequence[str], tasks: Sequence[Task], *,
           sandbox: Sandbox | None = None) -> list[tuple[Verdict, Score]]:
  """A verdict and the number of passed tests for each response in `texts`.

  sandbox: where programs run; None: that of this process. Raises ValueError when lengths differ or
  an interpreter is not on PATH, TypeError for what is not text, SandboxError when programs cannot
  be confined.
  """
  if len(texts) != len(tasks):
    raise ValueError(f"{len(texts)} texts for {len(tasks)} tasks")
  for at, (text, task) in enumerate(zip(texts, tasks, strict=True)):
    if not isinstance(text, str):
      raise TypeError(f"row {at}: text must be str, not {type(text).__name__}")
    if isinstance(task, Command) and not shutil.which(task.argv[0]):
      raise ValueError(f"row {at}: interpreter {task.argv[0]!r} is not on PATH")
  return _Batch(sandbox or shared(), texts, tasks).run()
