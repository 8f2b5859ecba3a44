"""Tools that run programs of the policy during an episode, confined as the verifier's are.

`Python` is a tool: programs -> what each shows. `ToolUse` adds a tool to a single-answer task: a
text that ends with a closed fence is a program, and what it shows is the observation; any other
text is the answer, and ends the episode.
"""

import contextlib
import dataclasses
import functools
import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence

from entrolab.environments import OfTask, reward_of
from entrolab.tasks.task import Example, Step, Task, stable_repr
from entrolab.verify.fences import last_fence
from entrolab.verify.sandbox import values
from entrolab.verify.sandbox.outside import Limits, Run, Sandbox

ERROR = "error: "  # begins what is shown of a program that failed
MAX_CHARACTERS = 20_000  # of a program

# Runs in the sandbox: the function that the parent calls, behind the lines of the program.
_DRIVER = '''
import ast, contextlib, io

def answer():
  printed, names = io.StringIO(), {"__name__": "__main__"}
  try:
    tree = ast.parse("\\n".join(LINES))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
      exec(compile(tree, "program", "exec"), names)
      if last is not None:
        value = eval(compile(ast.Expression(last.value), "program", "eval"), names)
        if value is not None:
          print(value)
  except BaseException as error:
    return printed.getvalue()[:MOST], f"{type(error).__name__}: {error}"[:MOST]
  return printed.getvalue()[:MOST], ""
'''


@functools.cache
def _box(limits: Limits) -> Sandbox:
  """The sandbox of this process with these limits. Raises SandboxError."""
  return Sandbox(limits=limits)


@dataclasses.dataclass(frozen=True)
class Python:
  """A tool that shows what a program prints, and the value of an expression as its last statement.

  Each program runs in a separate process without access to files or network. For a program that
  raises, ends early or exceeds a limit the tool shows `error: ` and the reason. Raises SandboxError
  where programs cannot be confined.
  """
  limits: Limits = Limits(seconds=5.0)  # of each program
  max_characters: int = 400  # of the output that is shown

  def __call__(self, programs: Sequence[str]) -> list[str]:
    """What each program shows; as many run at the same time as there are cores."""
    box = _box(self.limits)
    shown: dict[int, str] = {}  # by program
    active: dict[int, tuple[Run, float]] = {}  # by program: its run and deadline
    waiting = list(enumerate(programs))[::-1]
    try:
      while waiting or active:
        while waiting and len(active) < box.size:
          at, text = waiting.pop()
          if len(text) > MAX_CHARACTERS:
            shown[at] = f"{ERROR}{len(text)} characters, at most {MAX_CHARACTERS} are run"
          else:
            active[at] = self._start(box, text), time.monotonic() + self.limits.seconds
        for at, why in _ended(active, self.limits.seconds):
          run, _ = active.pop(at)
          run.end()
          shown[at] = why or self._shown(run.data)
          if not why and b"\n" not in run.data:  # ended without a message: was it ever confined?
            box.check_confined(run.status[0])
    finally:  # also after Ctrl-C: no process stays
      for run, _ in active.values():
        run.end()
    return [shown[at] for at in range(len(programs))]

  def _start(self, box: Sandbox, text: str) -> Run:
    """Starts a program and sends it the single call of `answer`."""
    calls, to_calls = os.pipe()
    answers, to_answers = os.pipe()
    lines = text.encode(errors="replace").decode().split("\n")
    source = f"LINES = {lines!r}\nMOST = {self.max_characters}\n{_DRIVER}"
    orders = {"role": "program", "text": source, "inbox": calls, "outbox": to_answers}
    run = Run([], answers, values.MAX_MESSAGE)
    try:
      run.processes.append(box.start(orders, subprocess.DEVNULL, (calls, to_answers)))
      with contextlib.suppress(BrokenPipeError):  # it may have ended already
        os.write(to_calls, values.packed({"call": "answer", "args": [],
                                          "named": values.plain({})}))
    except BaseException:
      run.end()
      raise
    finally:
      for fd in (calls, to_calls, to_answers):
        os.close(fd)
    return run

  def _shown(self, data: bytes) -> str:
    """The text of the first line that a process sent.

    The program can write that line itself: it is the policy's text in any case, and no verdict
    depends on it. A line of another form must not raise.
    """
    try:
      message = json.loads(data.partition(b"\n")[0])
      output, failed = values.rebuilt(message["value"])
      output, failed = (str(x).encode(errors="replace").decode() for x in (output, failed))
    except Exception:  # whatever the process sent
      return f"{ERROR}the program ended early"
    error = f"{ERROR}{failed}"[:self.max_characters] if failed else ""
    return "\n".join(filter(None, (output[:self.max_characters].rstrip(), error)))


def _ended(active: dict[int, tuple[Run, float]], seconds: float) -> list[tuple[int, str]]:
  """Waits for output or a deadline: (program, why it was stopped or "") of the runs that ended."""
  until = min(deadline for _, deadline in active.values())
  with selectors.DefaultSelector() as selector:
    for at, (run, _) in active.items():
      selector.register(run.output, selectors.EVENT_READ, at)
    readable = [key.data for key, _ in selector.select(max(until - time.monotonic(), 0.0))]
  now = time.monotonic()
  over = []
  for at, (run, deadline) in active.items():
    if at in readable and (run.read() or b"\n" in run.data):
      over.append((at, ""))
    elif now >= deadline:
      over.append((at, f"{ERROR}over the deadline of {seconds:g} s"))
  return over


@dataclasses.dataclass(frozen=True)
class ToolUseState:
  """An episode of `ToolUse`."""
  example: Example  # the question
  made: int = 0  # calls of the tool so far


@dataclasses.dataclass(frozen=True)
class ToolUse(OfTask):
  """A single-answer task with a tool."""
  task: Task  # verifies the answer
  tool: Callable[[Sequence[str]], list[str]] = Python()  # programs -> what each shows
  calls: int = 4  # of the tool, at most; the text after them is the answer, whatever it is
  shows: str = "```output\n{}\n```\n"  # the observation; {} stands for what the tool shows
  max_observation: int = 160  # tokens
  fence: str = "python"  # the language of the fences around programs, by any of its names
  __repr__ = stable_repr

  def program(self, text: str) -> str | None:
    """The program at the end of a text; None for an answer."""
    return last_fence(text, self.fence)

  def reset(self, example: Example) -> tuple[ToolUseState, str]:
    """The question."""
    return ToolUseState(example), example.prompt

  def steps(self, states: Sequence[ToolUseState], texts: Sequence[str]) -> list[Step]:
    """A text of each episode: programs run at the same time, answers are verified together."""
    programs = [self.program(text) if state.made < self.calls else None
                for state, text in zip(states, texts, strict=True)]
    calls = {at: program for at, program in enumerate(programs) if program is not None}
    answers = [at for at, program in enumerate(programs) if program is None]
    results: dict[int, Step] = {}
    for at, shown in zip(calls, self.tool(list(calls.values())), strict=True):
      state = dataclasses.replace(states[at], made=states[at].made + 1)
      results[at] = state, self.shows.replace("{}", shown), 0.0, False
    verdicts = self.task.verify([texts[at] for at in answers],
                                [states[at].example for at in answers])
    for at, verdict in zip(answers, verdicts, strict=True):
      results[at] = states[at], "", reward_of(verdict), True
    return [results[at] for at in range(len(texts))]
