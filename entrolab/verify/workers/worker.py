"""A worker, with which `pool.Pool` communicates over pipes.

  python -m entrolab.verify.workers.worker

The process that the pool starts imports a service once and evaluates nothing that a policy wrote.
It forks a child that does, confined, and kills the child at the deadline. Another child costs
milliseconds where another process costs seconds, so that hostile answers do not delay the others.
If this process itself hangs, the pool kills its whole session.

Confinement of the child is: limits on memory and processor time, files of no length, no new
privileges, and a seccomp filter under which it can open no file for writing, change none, reach no
network, start no process, run no program, and neither signal nor trace others. It can read files:
what it reads can leave it only as the value of a job.

A message is JSON after four bytes of length. The child exits when its pipe closes, or at its limit
of processor time if it is busy then, so that nothing outlives a killed parent.
"""

import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
import time
from typing import Any

from entrolab.verify.sandbox import inside, seccomp
from entrolab.verify.workers.service import Service

HEAD = struct.Struct("<I")  # the length of a message
MAX_MESSAGE = 1 << 20  # bytes of a message
CONTEXTS = 64  # of which a worker keeps what was prepared


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


def parsed(body: bytes) -> dict | None:
  """The message of these bytes; None for what is none."""
  try:
    message = json.loads(body)
  except (ValueError, RecursionError):
    return None
  return message if isinstance(message, dict) else None


def receive(fd: int) -> dict | None:
  """Reads a message from a blocking file descriptor.

  None when the other side has closed, or sent what is no message: a child may write anything.
  """
  head = _exactly(fd, HEAD.size)
  size = HEAD.unpack(head)[0] if head else 0
  body = _exactly(fd, size) if 0 < size <= MAX_MESSAGE else None
  return parsed(body or b"")


def _limit(what: int, value: int) -> None:
  _, hard = resource.getrlimit(what)
  soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
  resource.setrlimit(what, (soft, hard))


def _limit_seconds(seconds: float) -> None:
  """Limits the processor time from now on, 2 s later than the deadline that the worker enforces."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)


def confine(memory: int) -> None:
  """Confines this process for ever. Raises OSError where the kernel cannot.

  memory: bytes of address space beyond what the service has taken.
  """
  with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
  _limit(resource.RLIMIT_AS, taken + memory)
  for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
    _limit(what, 0)
  inside.install(seccomp.program(os.uname().machine, fork=False, threads=True, execute=False,
                                 alone=True, write=False))


def _serve(inbox: int, outbox: int, memory: int, service: Service,
           prepared: dict[str, Any]) -> None:
  """The child: {ready} or {error} when it is confined, then for each job {value, lost, spent}.

  lost: why there is no value; spent: this child is better replaced, as memory or stack ran out or
  the service says so.
  """
  try:
    confine(memory)
  except OSError as error:
    send(outbox, {"error": f"cannot be confined: {error.strerror or error}"})
    return
  send(outbox, {"ready": True})
  while (message := receive(inbox)) is not None:
    _limit_seconds(message["seconds"])
    value, lost, spent = None, "", False
    try:
      value, spent = service.work(prepared[key_of(message)], *message["job"])
      data = pack({"value": value, "lost": lost, "spent": spent})
    except (MemoryError, RecursionError) as error:
      data = pack({"value": None, "lost": f"it raised {type(error).__name__}", "spent": True})
    except Exception as error:  # whatever the service raises, this job was not decided
      lost = f"it raised {type(error).__name__}"[:200]
      data = pack({"value": None, "lost": lost, "spent": spent})
    while data:
      data = data[os.write(outbox, data):]


def key_of(message: dict) -> str:
  """The text by which a worker knows the context of a job."""
  return json.dumps(message.get("context"))


class Child:
  """The forked process that serves."""

  def __init__(self, memory: int, service: Service, prepared: dict[str, Any],
               close: tuple[int, ...]) -> None:
    """Forks, and waits until the child is confined. Raises OSError when it cannot be.

    memory: bytes of address space beyond the worker's; prepared: what `service.prepare` gave, by
    context; close: descriptors of the worker that the child must not hold open, else their other
    side would not see the worker end.
    """
    inbox, self.outbox = os.pipe()
    self.inbox, outbox = os.pipe()
    self.pid = os.fork()
    if not self.pid:
      code = 1
      try:
        for fd in (self.inbox, self.outbox, *close):
          os.close(fd)
        _serve(inbox, outbox, memory, service, prepared)
        code = 0
      finally:
        os._exit(code)
    os.close(inbox)
    os.close(outbox)
    hello = receive(self.inbox) or {"error": "the child ended before it was confined"}
    if "error" in hello:
      self.end()
      raise OSError(hello["error"])

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


def _decided(child: Child, message: dict, inbox: int) -> tuple[dict | None, str]:
  """(the child's answer to a job, ""), or (None, why there is none; "" if the child has died).

  The deadline holds for the whole answer, of which a child may write a part and stop. Raises
  BrokenPipeError when `inbox` closes meanwhile: nobody waits for the answer.
  """
  try:
    send(child.outbox, message)
  except BrokenPipeError:
    return None, ""
  end = time.monotonic() + message["seconds"]
  data = b""
  while True:
    ready, _, _ = select.select([child.inbox, inbox], [], [], max(end - time.monotonic(), 0.0))
    if inbox in ready:  # the pool sends nothing before it has an answer, so it has closed the pipe
      raise BrokenPipeError
    if not ready:
      return None, f"over the deadline of {message['seconds']:g} s"
    part = os.read(child.inbox, 1 << 16)
    data += part
    size = HEAD.unpack_from(data)[0] if len(data) >= HEAD.size else 0
    if not part or size > MAX_MESSAGE:
      return None, ""
    if size and len(data) >= HEAD.size + size:
      return parsed(data[HEAD.size:HEAD.size + size]), ""


class _Supervisor:
  """The worker: a service, what it has prepared, and the child that serves."""

  def __init__(self, inbox: int, outbox: int, memory: int, service: Service) -> None:
    self.service, self.memory, self.inbox = service, memory, inbox
    self.close = (inbox, outbox)  # what a child must not hold open
    self.prepared: dict[str, Any] = {}  # by context
    self.child: Child | None = None

  def fork(self) -> Child:
    """Another child in place of the present one. Raises OSError when it cannot be confined."""
    self.end()
    self.child = Child(self.memory, self.service, self.prepared, self.close)
    return self.child

  def end(self) -> int:
    """Ends the child, if there is one; the signal that ended it."""
    child, self.child = self.child, None
    return child.end() if child else 0

  def answer(self, message: dict) -> dict:
    """{value, lost} of a job. A context that is new is prepared first, outside of the deadline."""
    key = key_of(message)
    if key not in self.prepared:
      while len(self.prepared) >= CONTEXTS:
        del self.prepared[next(iter(self.prepared))]
      try:
        self.prepared[key] = self.service.prepare(message.get("context"))
      except Exception as error:  # of the context, which no policy wrote
        return {"value": None, "lost": f"{type(error).__name__}: {error}"[:500]}
      self.end()  # it was forked without this context
    child = self.child or self.fork()
    answer, why = _decided(child, message, self.inbox)
    if answer is None:
      ended = self.end()
      return {"value": None, "lost": why or f"the process ended by signal {ended}"}
    if answer.get("spent"):
      self.end()
    return {"value": answer.get("value"), "lost": str(answer.get("lost", ""))}


def supervise(inbox: int, outbox: int, memory: int, service: Service) -> None:
  """Jobs from `inbox` to a child, answers to `outbox`, until `inbox` closes."""
  supervisor = _Supervisor(inbox, outbox, memory, service)
  try:
    try:
      supervisor.fork()
    except OSError as error:
      send(outbox, {"unconfined": str(error)})
      return
    send(outbox, {"ready": True})
    while (message := receive(inbox)) is not None:
      send(outbox, supervisor.answer(message))
  finally:
    supervisor.end()


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
  service: Any = importlib.import_module(hello["service"])
  try:
    service.load()
  except ImportError as error:
    send(outbox, {"absent": str(error)})
    return 1
  gc.freeze()  # the collector writes no marks into pages that forked children share
  try:
    supervise(inbox, outbox, hello["memory"], service)
  except BrokenPipeError:
    return 0  # the pool has ended, or has given this worker up
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
