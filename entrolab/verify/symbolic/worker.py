"""A verifier worker, with which `pool.Pool` communicates over pipes.

  python -m entrolab.verify.symbolic.worker

The process that the pool starts imports math-verify once and compares nothing itself. It forks a
child that compares, under limits on memory and processor time, and kills the child at the deadline.
Another child costs milliseconds where another process costs seconds, so that hostile answers do not
delay the others. If this process itself hangs, the pool kills its whole session.

A message is JSON after four bytes of length. The child exits when its pipe closes, or at its limit
of processor time if it is busy then, so that nothing outlives a killed parent.
"""

import gc
import json
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable

HEAD = struct.Struct("<I")  # the length of a message
MAX_MESSAGE = 1 << 20  # bytes of a message


def pack(message: dict) -> bytes:
  """A message behind its length. Raises ValueError over MAX_MESSAGE bytes."""
  body = json.dumps(message).encode()
  if len(body) > MAX_MESSAGE:
    raise ValueError(f"message of {len(body)} bytes, at most {MAX_MESSAGE}")
  return HEAD.pack(len(body)) + body


def send(fd: int, message: dict) -> None:
  """Writes a message to a blocking file descriptor."""
  data = pack(message)
  while data:
    data = data[os.write(fd, data):]


def _exactly(fd: int, count: int) -> bytes | None:
  """Reads `count` bytes; None when the other side closes before."""
  parts = b""
  while len(parts) < count:
    part = os.read(fd, count - len(parts))
    if not part:
      return None
    parts += part
  return parts


def receive(fd: int) -> dict | None:
  """Reads a message from a blocking file descriptor; None when the other side has closed."""
  head = _exactly(fd, HEAD.size)
  body = _exactly(fd, HEAD.unpack(head)[0]) if head else None
  return json.loads(body) if body else None


def _limit(what: int, value: int) -> None:
  _, hard = resource.getrlimit(what)
  soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
  resource.setrlimit(what, (soft, hard))


def _limit_seconds(seconds: float) -> None:
  """Limits the processor time from now on, 2 s later than the deadline that the worker enforces."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)


def _serve(inbox: int, outbox: int, memory: int, work: Callable[..., tuple[str, str]]) -> None:
  """The child: answers each job by {status, why, spent} until the pipe closes.

  spent: memory or stack ran out, so that this child is better replaced.
  """
  _limit(resource.RLIMIT_AS, memory)
  _limit(resource.RLIMIT_FSIZE, 0)
  _limit(resource.RLIMIT_CORE, 0)
  while (message := receive(inbox)) is not None:
    _limit_seconds(message["seconds"])
    spent = False
    try:
      status, why = work(*message["job"])
    except (MemoryError, RecursionError) as error:
      status, why, spent = "unknown", f"comparison raised {type(error).__name__}", True
    except Exception as error:  # whatever the comparison raises, this job was not decided
      status, why = "unknown", f"comparison raised {type(error).__name__}"
    send(outbox, {"status": status, "why": why, "spent": spent})


class Child:
  """The forked process that compares."""

  def __init__(self, memory: int, work: Callable[..., tuple[str, str]],
               close: tuple[int, ...]) -> None:
    """Forks.

    memory: bytes of address space; work: compares a job; close: descriptors of the worker that the
    child must not hold open, else their other side would not see the worker end.
    """
    inbox, self.outbox = os.pipe()
    self.inbox, outbox = os.pipe()
    self.pid = os.fork()
    if self.pid:
      os.close(inbox)
      os.close(outbox)
      return
    code = 1
    try:
      for fd in (self.inbox, self.outbox, *close):
        os.close(fd)
      _serve(inbox, outbox, memory, work)
      code = 0
    finally:
      os._exit(code)

  def end(self) -> int:
    """Kills and reaps the child; the signal that ended it, 0 if it exited by itself."""
    for fd in (self.inbox, self.outbox):
      os.close(fd)
    pid, status = os.waitpid(self.pid, os.WNOHANG)
    if not pid:
      time.sleep(0.001)  # a child that has closed its pipe is about to exit
      pid, status = os.waitpid(self.pid, os.WNOHANG)
    if not pid:
      os.kill(self.pid, signal.SIGKILL)
      _, status = os.waitpid(self.pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _compared(child: Child, message: dict, inbox: int) -> tuple[dict | None, str]:
  """(the child's answer to a job, ""), or (None, why there is none; "" if the child has died).

  Raises BrokenPipeError when `inbox` closes meanwhile: nobody waits for the answer.
  """
  try:
    send(child.outbox, message)
  except BrokenPipeError:
    return None, ""
  ready, _, _ = select.select([child.inbox, inbox], [], [], message["seconds"])
  if inbox in ready:  # the pool sends nothing before it has an answer, so it has closed the pipe
    raise BrokenPipeError
  if not ready:
    return None, f"over the deadline of {message['seconds']:g} s"
  return receive(child.inbox), ""


def supervise(inbox: int, outbox: int, memory: int,
              work: Callable[..., tuple[str, str]]) -> None:
  """Jobs from `inbox` to a child, answers to `outbox`, until `inbox` closes."""
  child = Child(memory, work, (inbox, outbox))
  try:
    send(outbox, {"ready": child.pid})
    while (message := receive(inbox)) is not None:
      answer, why = _compared(child, message, inbox)
      if answer is None:
        ended = child.end()
        answer = {"status": "unknown",
                  "why": why or f"the comparing process ended by signal {ended}"}
        child = Child(memory, work, (inbox, outbox))
      elif answer["spent"]:
        child.end()
        child = Child(memory, work, (inbox, outbox))
      send(outbox, answer)
  finally:
    child.end()


def main() -> int:
  """Reports that it is ready, or why it cannot work, and then supervises."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when workers end
  inbox, outbox = os.dup(0), os.dup(1)
  quiet = os.open(os.devnull, os.O_RDWR)
  for fd in (0, 1, 2):  # what a library prints must not get into the messages
    os.dup2(quiet, fd)
  hello = receive(inbox)
  if hello is None:
    return 0
  try:
    from entrolab.verify.symbolic import compare
    compare.load()
  except ImportError as error:
    send(outbox, {"error": str(error)})
    return 1
  gc.freeze()  # the collector writes no marks into pages that forked children share
  try:
    supervise(inbox, outbox, hello["memory"], compare.compare)
  except BrokenPipeError:
    return 0  # the pool has ended, or has given this worker up
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
