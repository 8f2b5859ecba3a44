"""A pool of worker processes for third-party code, which answers may hang, crash or attack.

Workers are started by name (`python -m entrolab.verify.workers.worker`), so that the caller's
script is not imported again, and only when there is a job. Of a worker only its child reads what a
policy wrote, and the child is confined (see `worker`). At the deadline of a job the worker kills
and replaces the child; a worker that does not report even that is killed with its session and
replaced. A job that has no value has the reason, and no other job is affected.
"""

import collections
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from entrolab.verify.sandbox.outside import SandboxError
from entrolab.verify.workers.worker import HEAD, MAX_MESSAGE, send

_START_SECONDS = 120.0  # in which a worker must report that it is ready
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR",
              "SYSTEMROOT", "VIRTUAL_ENV")


def _environment() -> dict[str, str]:
  """The variables that Python needs and no others: the parent's may hold secrets.

  Sets have the same order in every worker, so that what one has made another makes again.
  """
  passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
  root = str(pathlib.Path(__file__).resolve().parents[3])  # where `entrolab` can be imported
  paths = [path for path in sys.path if path and os.path.exists(path)]
  return passed_on | {"PYTHONPATH": os.pathsep.join([*paths, root]), "PYTHONHASHSEED": "0",
                      "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
  """What a service is asked."""
  context: Any  # plain JSON that no policy wrote: what `service.prepare` gets
  arguments: tuple  # plain JSON: further arguments of `service.work`


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
  """What came of a job."""
  value: Any  # what `service.work` returned; None without it
  lost: str = ""  # why there is no value; empty when there is


class _Worker:
  """A worker process as the parent sees it: starting, idle or busy with a job."""

  def __init__(self, service: str, memory: int) -> None:
    self.process = subprocess.Popen(
        [sys.executable, "-P", "-B", "-m", "entrolab.verify.workers.worker"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_environment(),
        start_new_session=True)
    assert self.process.stdin and self.process.stdout
    self.inbox = self.process.stdout.fileno()
    self.outbox = self.process.stdin.fileno()
    self.buffer = b""  # read, but not yet a whole message
    self.ready = False  # whether it has reported that it is ready
    self.job: int | None = None  # the index of the job that it has
    self.deadline = time.monotonic() + _START_SECONDS  # of its start, later of its job
    self.send({"service": service, "memory": memory})

  def send(self, message: dict) -> bool:
    """Sends a message; whether the worker still takes it. It is idle, so the pipe is empty and this
    does not block."""
    try:
      send(self.outbox, message)
    except BrokenPipeError:
      return False
    return True

  def read(self) -> tuple[list[dict], bool]:
    """(messages that have arrived, whether the worker is still there).

    A length over MAX_MESSAGE is not a worker's: it counts as lost.
    """
    data = os.read(self.inbox, 1 << 16)
    self.buffer += data
    messages = []
    while len(self.buffer) >= HEAD.size:
      end = HEAD.size + HEAD.unpack_from(self.buffer)[0]
      if end > HEAD.size + MAX_MESSAGE:
        return messages, False
      if len(self.buffer) < end:
        break
      messages.append(json.loads(self.buffer[HEAD.size:end]))
      self.buffer = self.buffer[end:]
    return messages, bool(data)

  def end(self, seconds: float = 0.0) -> int:
    """Ends and reaps the process and its child; the exit code, negative for a signal.

    An idle worker exits when its pipe closes. If it has not within `seconds`, its whole session is
    killed.
    """
    assert self.process.stdin and self.process.stdout
    self.process.stdin.close()
    try:
      code = self.process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
      os.killpg(self.process.pid, signal.SIGKILL)
      code = self.process.wait()
    self.process.stdout.close()
    return code


def _end_all(workers: list[_Worker], owner: int) -> None:
  if os.getpid() != owner:  # a forked copy of the parent has no workers
    return
  for worker in workers:
    assert worker.process.stdin
    worker.process.stdin.close()  # all exit at the same time
  while workers:
    workers.pop().end(seconds=1.0)


class Pool:
  """Killable, confined workers of one service; also a context manager.

  Any thread may run a batch; batches run one after the other.

  service: the name of a module with the functions of `service.Service`.
  size: number of workers; None: as many as usable cores, at most 4.
  seconds: wall time of a job.
  batch_seconds: wall time of a whole batch.
  memory: bytes of address space that a worker's child may take, beyond what the service takes.
  grace: seconds after the deadline of a job in which its worker must report that; a service whose
    `prepare` takes long needs more.

  Raises ValueError for a size, time or memory that is not positive.
  """

  def __init__(self, service: str, size: int | None = None, *, seconds: float = 2.0,
               batch_seconds: float = 120.0, memory: int = 2 << 30, grace: float = 2.0) -> None:
    self.service, self.grace = service, grace
    self.size = min(len(os.sched_getaffinity(0)), 4) if size is None else size
    self.seconds, self.batch_seconds, self.memory = seconds, batch_seconds, memory
    for name, value in (("size", self.size), ("seconds", seconds), ("grace", grace),
                        ("batch_seconds", batch_seconds), ("memory", memory)):
      if value <= 0:
        raise ValueError(f"Pool({name}={value}): must be positive")
    self._workers: list[_Worker] = []
    self._lock = threading.Lock()
    self._owner = os.getpid()
    self._failed_starts = 0  # since a worker was last ready
    self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Ends every worker; a later batch starts new ones."""
    with self._lock:
      _end_all(self._workers, self._owner)

  def pids(self) -> list[int]:
    """Process ids of the workers that are alive: `size` of them after a batch."""
    return [worker.process.pid for worker in self._workers if worker.process.poll() is None]

  def run(self, jobs: Sequence[Job], *, seconds: float | None = None,
          batch_seconds: float | None = None) -> list[Result]:
    """A result for each job, in order, none later than its deadline.

    seconds, batch_seconds: None takes the pool's. Raises ImportError when a library of the service
    is absent, SandboxError when a worker cannot be confined, RuntimeError when workers do not
    start.
    """
    if os.getpid() != self._owner:  # this process was forked: the workers are its parent's
      self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()
      self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)
    if not jobs:
      return []
    with self._lock:
      batch = _Batch(self, jobs, self.seconds if seconds is None else seconds,
                     self.batch_seconds if batch_seconds is None else batch_seconds)
      try:
        return batch.run()
      except BaseException:  # also Ctrl-C: no worker stays busy with a job that is lost
        _end_all(self._workers, self._owner)
        raise

  def _replace(self, at: int) -> None:
    """Ends a worker and starts another in its place."""
    self._workers[at].end()
    self._workers[at] = _Worker(self.service, self.memory)

  def _fill(self) -> None:
    """Starts workers until there are `size` that live."""
    for at, old in enumerate(self._workers):
      if old.process.poll() is not None:
        self._replace(at)
    while len(self._workers) < self.size:
      self._workers.append(_Worker(self.service, self.memory))


class _Batch:
  """The event loop of a call of `Pool.run`."""

  def __init__(self, pool: Pool, jobs: Sequence[Job], seconds: float,
               batch_seconds: float) -> None:
    self.pool, self.jobs = pool, jobs
    self.seconds, self.batch_seconds = seconds, batch_seconds
    self.end = time.monotonic() + batch_seconds
    self.waiting = collections.deque(range(len(jobs)))
    self.results: dict[int, Result] = {}  # by job
    self.retried: set[int] = set()  # jobs whose worker died while it had them

  def run(self) -> list[Result]:
    """The results in the order of the jobs."""
    workers = self.pool._workers
    self.pool._fill()
    while len(self.results) < len(self.jobs):
      self._assign()
      now = time.monotonic()
      deadlines = [worker.deadline for worker in workers
                   if worker.job is not None or not worker.ready]
      until = min([self.end, *deadlines])
      with selectors.DefaultSelector() as selector:
        for at, worker in enumerate(workers):
          selector.register(worker.inbox, selectors.EVENT_READ, at)
        events = selector.select(max(until - now, 0.0))
      for key, _ in events:
        self._receive(key.data)
      self._expire()
    return [self.results[at] for at in range(len(self.jobs))]

  def _lose(self, job: int | None, why: str) -> None:
    if job is not None:
      self.results[job] = Result(None, why)

  def _assign(self) -> None:
    """Sends waiting jobs to idle workers."""
    for at, worker in enumerate(self.pool._workers):
      if self.waiting and worker.ready and worker.job is None:
        job = self.waiting.popleft()
        try:
          taken = worker.send({"context": self.jobs[job].context, "job": self.jobs[job].arguments,
                               "seconds": self.seconds})
        except ValueError as error:  # too long
          self._lose(job, str(error))
          continue
        if taken:
          worker.job = job
          worker.deadline = time.monotonic() + self.seconds + self.pool.grace
        else:  # it died while idle, which this job did not cause
          self.waiting.appendleft(job)
          self.pool._replace(at)

  def _receive(self, at: int) -> None:
    """Takes the messages of a worker, and replaces it if it has died."""
    worker = self.pool._workers[at]
    messages, alive = worker.read()
    for message in messages:
      if "absent" in message:
        raise ImportError(message["absent"])
      if "unconfined" in message:
        raise SandboxError(f"{self.pool.service}: {message['unconfined']}")
      if "ready" in message:
        worker.ready = True
        self.pool._failed_starts = 0
      elif worker.job is not None:
        self.results[worker.job] = Result(message["value"], message["lost"])
        worker.job = None
    if not alive:
      # the child has the job, which can hardly kill the worker: it is tried once more
      if worker.job is not None and worker.job not in self.retried:
        self.retried.add(worker.job)
        self.waiting.appendleft(worker.job)
        worker.job = None
      self._lost(at, "two workers died over it")

  def _lost(self, at: int, why: str) -> None:
    """Replaces a worker that died or hung. Raises RuntimeError when no worker starts."""
    pool = self.pool
    worker = pool._workers[at]
    self._lose(worker.job, why)
    if not worker.ready:
      pool._failed_starts += 1
      if pool._failed_starts > 2 * pool.size:
        code = worker.end()
        raise RuntimeError(f"no verifier worker starts: {sys.executable} -m "
                           f"entrolab.verify.workers.worker ended with code {code}")
    pool._replace(at)

  def _expire(self) -> None:
    """Replaces workers past their deadline; leaves all jobs unknown past that of the batch."""
    now = time.monotonic()
    for at, worker in enumerate(self.pool._workers):
      if worker.job is None and worker.ready:
        continue
      if now >= worker.deadline:
        self._lost(at, f"over the deadline of {self.seconds:g} s")
    if now < self.end:
      return
    why = f"over the batch deadline of {self.batch_seconds:g} s"
    for at, worker in enumerate(self.pool._workers):
      if worker.job is not None:
        self._lose(worker.job, why)
        self.pool._replace(at)
    while self.waiting:
      self._lose(self.waiting.popleft(), why)


_shared: dict[str, Pool] = {}  # by service
_shared_lock = threading.Lock()


def shared(service: str, **options: Any) -> Pool:
  """The pool of this process for a service, made by `Pool(service, **options)` at the first call
  and ended with the interpreter."""
  with _shared_lock:
    if service not in _shared:
      _shared[service] = Pool(service, **options)
    return _shared[service]
