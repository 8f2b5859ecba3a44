"""Tools of episodes that run what a policy writes: confined, under the limits of the verifier.

`Python` is a tool: programs in, what they show out. `ToolUse` gives one to a task with one answer:
a text whose last fence is closed at its end is a program, and what it shows is the observation;
any other text is the answer, and ends the episode.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence

from entrolab.environments import OfTask
from entrolab.tasks.task import Example, Step, Task
from entrolab.verify.sandbox import inside
from entrolab.verify.sandbox.outside import Limits, Run, Sandbox

ERROR = "error: "     # how what is shown of a program that failed begins
LONGEST = 20_000      # characters of a program

_DRIVER = '''
import ast, contextlib, io

def answer():
  said, names = io.StringIO(), {"__name__": "__main__"}
  try:
    tree = ast.parse("\\n".join(LINES))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(said):
      exec(compile(tree, "program", "exec"), names)
      if last is not None:
        value = eval(compile(ast.Expression(last.value), "program", "eval"), names)
        if value is not None:
          print(value)
  except BaseException as error:
    return said.getvalue()[:MOST], f"{type(error).__name__}: {error}"[:MOST]
  return said.getvalue()[:MOST], ""
'''


@functools.cache
def _box(limits: Limits) -> Sandbox:
  """The process's own sandbox with these limits. Raises SandboxError."""
  return Sandbox(limits=limits)


@dataclasses.dataclass(frozen=True)
class Python:
  """What programs print, and the value of the expression that may be their last statement.

  limits: of a program, each in a process of its own that can reach neither files nor network;
  max_characters: how much of the output is shown. A program that raises, ends early or is over a
  limit shows `error: ` and why. Raises SandboxError where programs cannot be confined.
  """
  limits: Limits = Limits(seconds=5.0)
  max_characters: int = 400

  def __call__(self, programs: Sequence[str]) -> list[str]:
    """What every program shows; as many run at once as there are cores."""
    box, shown, active = _box(self.limits), {}, {}
    waiting = list(enumerate(programs))[::-1]
    try:
      while waiting or active:
        while waiting and len(active) < box.size:
          at, text = waiting.pop()
          if len(text) > LONGEST:
            shown[at] = f"{ERROR}{len(text)} characters, at most {LONGEST} are run"
          else:
            active[at] = self._start(box, text), time.monotonic() + self.limits.seconds
        for at, why in _ended(active, self.limits.seconds):
          run, _ = active.pop(at)
          run.end()
          shown[at] = why or self._shown(run.data)
          if not why and b"\n" not in run.data:
            box.check_confined(run.status[0])
    finally:                                     # Ctrl-C included
      for run, _ in active.values():
        run.end()
    return [shown[at] for at in range(len(programs))]

  def _start(self, box: Sandbox, text: str) -> Run:
    (calls, call), (answers, answer) = os.pipe(), os.pipe()
    lines = text.encode(errors="replace").decode().split("\n")
    source = f"LINES = {lines!r}\nMOST = {self.max_characters}\n{_DRIVER}"
    orders = {"role": "program", "text": source, "inbox": calls, "outbox": answer}
    run = Run([], answers, inside.MAX_MESSAGE)
    try:
      run.processes.append(box.start(orders, subprocess.DEVNULL, (calls, answer)))
      with contextlib.suppress(BrokenPipeError):
        os.write(call, inside.packed({"call": "answer", "args": [],
                                        "named": inside.plain({})}))
    except BaseException:
      run.end()
      raise
    finally:
      for fd in (calls, call, answer):
        os.close(fd)
    return run

  def _shown(self, data: bytes) -> str:
    """What the first line that a process sent says; the program may have forged it, and gets it."""
    try:
      output, failed = inside.rebuilt(json.loads(data.partition(b"\n")[0])["value"])
      output, failed = (str(x).encode(errors="replace").decode() for x in (output, failed))
    except Exception:                            # whatever it sent
      return f"{ERROR}the program ended early"
    error = f"{ERROR}{failed}"[:self.max_characters] if failed else ""
    return "\n".join(filter(None, (output[:self.max_characters].rstrip(), error)))


def _ended(active: dict[int, tuple[Run, float]], seconds: float) -> list[tuple[int, str]]:
  """Waits until some of the runs are over: (which, why it was cut or "")."""
  until = min(deadline for _, deadline in active.values())
  with selectors.DefaultSelector() as selector:
    for at, (run, _) in active.items():
      selector.register(run.output, selectors.EVENT_READ, at)
    heard = [key.data for key, _ in selector.select(max(until - time.monotonic(), 0.0))]
  now, over = time.monotonic(), []
  for at, (run, deadline) in active.items():
    if at in heard and (run.read() or b"\n" in run.data):
      over.append((at, ""))
    elif now >= deadline:
      over.append((at, f"{ERROR}over the deadline of {seconds:g} s"))
  return over


@dataclasses.dataclass(frozen=True)
class ToolUseState:
  """The example, and the calls of the tool so far."""
  example: Example
  made: int = 0


@dataclasses.dataclass(frozen=True)
class ToolUse(OfTask):
  """A task with one answer and a tool. calls: at most; the text after them is the answer, whatever
  it is. shows: what stands around what the tool shows, at `{}`."""
  task: Task
  tool: Callable[[Sequence[str]], list[str]] = Python()
  calls: int = 4
  shows: str = "```output\n{}\n```\n"
  max_observation: int = 160
  fence: str = "python"

  def program(self, text: str) -> str | None:
    """The program that a text ends with; None for an answer."""
    found = re.findall(rf"```{re.escape(self.fence)}[^\S\n]*\n(.*?)```", text, re.DOTALL)
    return found[-1] if found and text.rstrip().endswith("```") else None

  def reset(self, example: Example) -> tuple[ToolUseState, str]:
    """The question."""
    return ToolUseState(example), example.prompt

  def steps(self, states: Sequence[ToolUseState], texts: Sequence[str]) -> list[Step]:
    """One text each: the programs run at the same time, the answers are judged together."""
    programs = [self.program(text) if state.made < self.calls else None
                for state, text in zip(states, texts, strict=True)]
    called = [at for at, program in enumerate(programs) if program is not None]
    answers = [at for at, program in enumerate(programs) if program is None]
    done: dict[int, Step] = {}
    for at, shown in zip(called, self.tool([programs[at] or "" for at in called]), strict=True):
      state = dataclasses.replace(states[at], made=states[at].made + 1)
      done[at] = state, self.shows.replace("{}", shown), 0.0, False
    verdicts = self.task.verify([texts[at] for at in answers],
                                [states[at].example for at in answers])
    for at, verdict in zip(answers, verdicts, strict=True):
      done[at] = states[at], "", float(verdict.status == "right"), True
    return [done[at] for at in range(len(texts))]
