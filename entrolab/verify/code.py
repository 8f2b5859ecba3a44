"""Programs: run where they can do no harm, and right only when a secret says so.

A `Functions` task is Python: tests call functions of the answer. Tests and answer run in two
sandboxes (see `sandbox`); the tests report under a secret of this run, and only the report that
follows the last test makes an answer right. A `Command` task is any interpreter, given as a
command: each case appends a call to the answer and compares what it prints with what only the
parent knows (arXiv:2508.06813). No exit code counts.

right    every test passed
wrong    a test failed, the program raised, ended early, or there is none
unknown  over a deadline, or the tests themselves are at fault

Trust boundary: the kernel, bwrap, the interpreter and this package are trusted. Answers are not,
and neither are tests, which come with data: both run confined, and neither can make the parent
raise. Tests do decide the verdict: what is weak or guessable in them is paid. Answers can read
what the interpreter's folders, /usr and `read` hold: keep reference solutions elsewhere. Not
promised: protection from a flaw of the kernel or of bwrap, from timing channels between programs,
or from load: deadlines are wall time, so a machine that is too busy decides less.
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
from entrolab.verify.sandbox.outside import Run, Sandbox, SandboxError

LONGEST = 200_000     # characters of a program


@dataclasses.dataclass(frozen=True, slots=True)
class Functions:
  """Python functions and tests that call them.

  names: the functions that tests call; tests: Python, each passes unless it raises; setup:
  Python that runs before them. Arguments and results cross by value, as plain data.
  """
  names: tuple[str, ...]
  tests: tuple[str, ...]
  setup: str = ""

  def __post_init__(self) -> None:
    if not self.names or not self.tests:
      raise ValueError(f"Functions needs names and tests; has {self.names} and {self.tests}")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
  """One call of a program: text that follows it, what it must print, what it may read."""
  call: str
  expected: str
  stdin: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
  """Programs of any interpreter. argv: the command, {file} standing for the program's path;
  suffix: of that file; languages: of the answer's fence; environment: beside PATH, HOME, LANG."""
  argv: tuple[str, ...]
  cases: tuple[Case, ...]
  suffix: str = ""
  languages: tuple[str, ...] = ()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.cases or not any("{file}" in word for word in self.argv):
      raise ValueError(f"Command needs cases and {{file}} in its command; has {len(self.cases)} "
                       f"cases and {self.argv}")


Task = Functions | Command


def _total(task: Task) -> int:
  return len(task.tests if isinstance(task, Functions) else task.cases)


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
  """Tests passed, of all."""
  passed: int
  total: int


def reward(score: Score, *, base: float = 1.0, bonus: float = 1.0) -> float:
  """base * passed / total + bonus where all passed: base=0 is binary, bonus=0 the fraction."""
  share = score.passed / score.total if score.total else 0.0
  return base * share + (bonus if share == 1.0 else 0.0)


_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def program_of(text: str, languages: Sequence[str] = ()) -> str:
  """The program in an answer: of what follows </think> and lies in <answer>, the last fence in
  one of `languages`, else the last fence, else the text itself without stray fences."""
  text = text.rpartition("</think>")[2]
  inner = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
  text = inner[-1] if inner else text
  fences = _FENCE.findall(text)
  own = [body for tag, body in fences if tag.lower() in languages]
  bodies = own or [body for _, body in fences]
  return bodies[-1] if bodies else re.sub(r"^[ \t]*```.*$", "", text, flags=re.MULTILINE)


_LANGUAGES = ("python", "py", "python3")
Steps = Generator[Run, str, tuple[Verdict, Score]]


def _confined(box: Sandbox, status: str) -> None:
  """Raises SandboxError when a process was not ready to run what nobody trusts."""
  if "ready" not in status or "failed:" in status:
    said = status.replace("ready\n", "").strip() or "a process ended before it was confined"
    raise SandboxError(f"{box.kind}: {said}")


def _report(data: bytes, secret: str) -> list[dict[str, Any]]:
  """What was said under the secret."""
  said = []
  for line in data.splitlines():
    with contextlib.suppress(ValueError, RecursionError):      # a line that the deadline cut
      said.append(json.loads(line))
  return [line for line in said if isinstance(line, dict) and line.get("secret") == secret]


def _pair(box: Sandbox, task: Functions, source: str, secret: str) -> Run:
  """Judge and program in two sandboxes, pipes between them, the judge's report to the parent."""
  (calls, call), (answers, answer), (report, output) = os.pipe(), os.pipe(), os.pipe()
  run = Run([], report, 4096 * (1 + len(task.tests)))
  try:
    run.processes.append(box.start({
        "role": "judge", "secret": secret, "setup": task.setup, "names": task.names,
        "tests": task.tests, "text": "\n".join([task.setup, *task.tests]), "inbox": answers,
        "outbox": call}, output, (answers, call)))
    run.processes.append(box.start({
        "role": "program", "text": source, "inbox": calls, "outbox": answer},
        subprocess.DEVNULL, (calls, answer)))
  except BaseException:
    run.end()
    raise
  finally:
    for fd in (calls, call, answers, answer, output):
      os.close(fd)
  return run


def _functions(box: Sandbox, task: Functions, source: str) -> Steps:
  secret, total = secrets.token_hex(16), len(task.tests)
  run = _pair(box, task, source, secret)
  cut = yield run
  said = _report(run.data, secret)
  if any(line.get("gone") for line in said):
    _confined(box, run.status[1])
  if not said and not cut:
    _confined(box, run.status[0])
  score = Score(min(sum(line.get("passed") is True for line in said), total), total)
  fault = cut or next((str(line["unknown"])[:300] for line in said if "unknown" in line), "")
  if not fault and not any("end" in line for line in said):
    fault = "the tests ended early"
  if fault:
    return Verdict("unknown", fault), score
  if score.passed == total:
    return Verdict("right", f"{total} tests passed"), score
  failed = next((str(line["why"])[:300] for line in said if line.get("why")), "")
  return Verdict("wrong", f"{score.passed} of {total} tests passed; {failed}"), score


def _same(output: bytes, expected: str) -> bool:
  """Equal but for white space around; an empty string may be printed as two quotes."""
  printed, wanted = output.decode(errors="replace").strip(), expected.strip()
  return (printed if printed != '""' else "") == (wanted if wanted != '""' else "")


def _command(box: Sandbox, task: Command, source: str) -> Steps:
  """One sandbox a case, one after the other; what is printed is compared here."""
  passed, total, why = 0, len(task.cases), ""
  with tempfile.TemporaryDirectory(prefix="entrolab-") as folder:
    os.chmod(folder, 0o755)                    # for another user id
    path = os.path.join(folder, "program" + task.suffix)
    argv = [shutil.which(task.argv[0]), *(word.replace("{file}", path) for word in task.argv[1:])]
    for at, case in enumerate(task.cases):
      with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(f"{source}\n\n{case.call}\n")
      report, output = os.pipe()
      run = Run([], report, box.limits.output)
      try:
        run.processes.append(box.start({
            "role": "command", "argv": argv, "text": case.stdin,
            "environment": dict(task.environment)}, output, folders=[folder]))
      except BaseException:
        run.end()
        raise
      finally:
        os.close(output)
      cut = yield run
      if cut:
        return Verdict("unknown", f"{cut}, in case {at + 1}"), Score(passed, total)
      _confined(box, run.status[0])
      if _same(run.data, case.expected) and len(run.data) <= run.most:
        passed += 1
      elif not why:
        long = f"over {run.most} bytes" if len(run.data) > run.most else "another output"
        why = f"; case {at + 1}: {long}"
  status = "right" if passed == total else "wrong"
  return Verdict(status, f"{passed} of {total} cases passed{why}"), Score(passed, total)


class _Batch:
  """The event loop of one call of `verify`."""

  def __init__(self, box: Sandbox, texts: Sequence[str], tasks: Sequence[Task]) -> None:
    self.box, self.tasks = box, tasks
    self.results: dict[int, tuple[Verdict, Score]] = {}
    self.waiting: collections.deque[tuple[int, str]] = collections.deque()
    self.active: dict[int, tuple[Steps, Run, float]] = {}    # by item: steps, run, deadline
    self.end = time.monotonic() + box.batch_seconds
    for at, (text, task) in enumerate(zip(texts, tasks, strict=True)):
      source = program_of(text, _LANGUAGES if isinstance(task, Functions) else task.languages)
      if not source.strip():
        self.results[at] = Verdict("wrong", "no program"), Score(0, _total(task))
      elif len(source) > LONGEST:
        why = f"a program of {len(source)} characters, at most {LONGEST} are read"
        self.results[at] = Verdict("wrong", why), Score(0, _total(task))
      else:
        self.waiting.append((at, source))

  def run(self) -> list[tuple[Verdict, Score]]:
    try:
      while self.waiting or self.active:
        while self.waiting and len(self.active) < self.box.size:
          self._begin(*self.waiting.popleft())
        self._wait()
      return [self.results[at] for at in range(len(self.tasks))]
    finally:                                     # Ctrl-C and SandboxError included
      for steps, run, _ in self.active.values():
        run.end()
        steps.close()

  def _begin(self, at: int, source: str) -> None:
    if time.monotonic() >= self.end:
      why = f"over the batch deadline of {self.box.batch_seconds:g} s"
      self.results[at] = Verdict("unknown", why), Score(0, _total(self.tasks[at]))
      return
    task = self.tasks[at]
    steps = (_functions(self.box, task, source) if isinstance(task, Functions)
             else _command(self.box, task, source))
    self.active[at] = steps, next(steps), time.monotonic() + self.box.limits.seconds

  def _wait(self) -> None:
    """Reads what has arrived and ends what is over."""
    now = time.monotonic()
    until = min([self.end, *(deadline for _, _, deadline in self.active.values())])
    with selectors.DefaultSelector() as selector:
      for at, (_, run, _) in self.active.items():
        selector.register(run.output, selectors.EVENT_READ, at)
      heard = [key.data for key, _ in selector.select(max(until - now, 0.0))]
    now = time.monotonic()
    for at, (_, run, deadline) in list(self.active.items()):
      if at in heard and run.read():
        self._next(at, "")
      elif now >= self.end:
        self._next(at, f"over the batch deadline of {self.box.batch_seconds:g} s")
      elif now >= deadline:
        self._next(at, f"over the deadline of {self.box.limits.seconds:g} s")

  def _next(self, at: int, cut: str) -> None:
    """Ends a run and goes on with its item."""
    steps, run, deadline = self.active.pop(at)
    run.end()
    try:
      self.active[at] = steps, steps.send(cut), deadline
    except StopIteration as stop:
      self.results[at] = stop.value


@functools.cache
def shared() -> Sandbox:
  """The process's own sandbox, chosen when first asked for. Raises SandboxError."""
  return Sandbox()


def verify(texts: Sequence[str], tasks: Sequence[Task], *,
           sandbox: Sandbox | None = None) -> list[tuple[Verdict, Score]]:
  """A verdict and the tests passed for each answer in `texts`; every item is decided.

  Raises ValueError when lengths differ or an interpreter is not on PATH, TypeError for what is
  no text, SandboxError when programs cannot be confined.
  """
  if len(texts) != len(tasks):
    raise ValueError(f"{len(texts)} texts for {len(tasks)} tasks")
  for at, (text, task) in enumerate(zip(texts, tasks, strict=True)):
    if not isinstance(text, str):
      raise TypeError(f"row {at}: text must be str, not {type(text).__name__}")
    if isinstance(task, Command) and not shutil.which(task.argv[0]):
      raise ValueError(f"row {at}: interpreter {task.argv[0]!r} is not on PATH")
  return _Batch(sandbox or shared(), texts, tasks).run()
