"""A pool of worker processes for symbolic comparison that answers may hang or crash.

Workers are started by name (`python -m entrolab.verify.symbolic.worker`), so that the caller's
script is not imported again, and only when there is a job. At the deadline of a job its worker
kills and replaces the child that compares; a worker that does not report even that is killed with
its session and replaced. Every job ends as a verdict: right or wrong if it was compared, else
unknown with the reason.
"""

import collections
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

from entrolab.verify import Verdict
from entrolab.verify.symbolic.compare import INSTALL
from entrolab.verify.symbolic.worker import HEAD, MAX_MESSAGE, send

Job = tuple[str, str, int]  # canonical reference, canonical answer, decimals

_START_SECONDS = 120.0  # in which a worker must report that it is ready
_GRACE_SECONDS = 2.0  # after the deadline of a job, in which its worker must report that
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR",
              "SYSTEMROOT", "VIRTUAL_ENV")


def _environment() -> dict[str, str]:
  """The variables that Python needs and no others: the parent's may hold secrets."""
  passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
  root = str(pathlib.Path(__file__).resolve().parents[3])  # where `entrolab` can be imported
  paths = [path for path in sys.path if path and os.path.exists(path)]
  return passed_on | {"PYTHONPATH": os.pathsep.join([*paths, root])}


class _Worker:
  """A worker process as the parent sees it: starting, idle or busy with a job."""

  def __init__(self, memory: int) -> None:
    self.process = subprocess.Popen(
        [sys.executable, "-P", "-m", "entrolab.verify.symbolic.worker"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_environment(),
        start_new_session=True)
    assert self.process.stdin and self.process.stdout
    self.inbox = self.process.stdout.fileno()
    self.outbox = self.process.stdin.fileno()
    self.buffer = b""  # read, but not yet a whole message
    self.ready = False  # whether it has reported that it is ready
    self.job: int | None = None  # the index of the job that it compares
    self.deadline = time.monotonic() + _START_SECONDS  # of its start, later of its job
    self.send({"memory": memory})

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
  """Killable workers for symbolic comparison; also a context manager.

  Any thread may run a batch; batches run one after the other.

  size: number of workers; None: as many as usable cores, at most 4.
  seconds: wall time of a job.
  batch_seconds: wall time of a whole batch.
  memory: bytes of address space of a worker's child.

  Raises ValueError for a size, time or memory that is not positive.
  """

  def __init__(self, size: int | None = None, *, seconds: float = 2.0,
               batch_seconds: float = 120.0, memory: int = 2 << 30) -> None:
    self.size = min(len(os.sched_getaffinity(0)), 4) if size is None else size
    self.seconds, self.batch_seconds, self.memory = seconds, batch_seconds, memory
    for name, value in (("size", self.size), ("seconds", seconds),
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
          batch_seconds: float | None = None) -> list[Verdict]:
    """A verdict for each job, in order, none later than its deadline.

    seconds, batch_seconds: None takes the pool's. Raises ImportError when math-verify is absent,
    RuntimeError when workers do not start.
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
    self._workers[at] = _Worker(self.memory)

  def _fill(self) -> None:
    """Starts workers until there are `size` that live."""
    for at, old in enumerate(self._workers):
      if old.process.poll() is not None:
        self._replace(at)
    while len(self._workers) < self.size:
      self._workers.append(_Worker(self.memory))


class _Batch:
  """The event loop of a call of `Pool.run`."""

  def __init__(self, pool: Pool, jobs: Sequence[Job], seconds: float,
               batch_seconds: float) -> None:
    self.pool, self.jobs = pool, jobs
    self.seconds, self.batch_seconds = seconds, batch_seconds
    self.end = time.monotonic() + batch_seconds
    self.waiting = collections.deque(range(len(jobs)))
    self.verdicts: dict[int, Verdict] = {}  # by job
    self.retried: set[int] = set()  # jobs whose worker died while it compared them

  def run(self) -> list[Verdict]:
    """The verdicts in the order of the jobs."""
    workers = self.pool._workers
    self.pool._fill()
    while len(self.verdicts) < len(self.jobs):
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
    return [self.verdicts[at] for at in range(len(self.jobs))]

  def _unknown(self, job: int | None, why: str) -> None:
    if job is not None:
      self.verdicts[job] = Verdict("unknown", why)

  def _assign(self) -> None:
    """Sends waiting jobs to idle workers."""
    for at, worker in enumerate(self.pool._workers):
      if self.waiting and worker.ready and worker.job is None:
        job = self.waiting.popleft()
        if worker.send({"job": self.jobs[job], "seconds": self.seconds}):
          worker.job = job
          worker.deadline = time.monotonic() + self.seconds + _GRACE_SECONDS
        else:  # it died while idle, which this job did not cause
          self.waiting.appendleft(job)
          self.pool._replace(at)

  def _receive(self, at: int) -> None:
    """Takes the messages of a worker, and replaces it if it has died."""
    worker = self.pool._workers[at]
    messages, alive = worker.read()
    for message in messages:
      if "error" in message:
        raise ImportError(f"a verifier worker cannot import math-verify ({message['error']}): "
                          f"{INSTALL}")
      if "ready" in message:
        worker.ready = True
        self.pool._failed_starts = 0
      elif worker.job is not None:
        self.verdicts[worker.job] = Verdict(message["status"], message["why"])
        worker.job = None
    if not alive:
      # the child compares, so a job can hardly kill the worker: it is tried once more
      if worker.job is not None and worker.job not in self.retried:
        self.retried.add(worker.job)
        self.waiting.appendleft(worker.job)
        worker.job = None
      self._lost(at, "two verifier workers died over this comparison")

  def _lost(self, at: int, why: str) -> None:
    """Replaces a worker that died or hung. Raises RuntimeError when no worker starts."""
    pool = self.pool
    worker = pool._workers[at]
    self._unknown(worker.job, why)
    if not worker.ready:
      pool._failed_starts += 1
      if pool._failed_starts > 2 * pool.size:
        code = worker.end()
        raise RuntimeError(f"no verifier worker starts: {sys.executable} -m "
                           f"entrolab.verify.symbolic.worker ended with code {code}")
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
        self._unknown(worker.job, why)
        self.pool._replace(at)
    while self.waiting:
      self._unknown(self.waiting.popleft(), why)


_shared: Pool | None = None
_shared_lock = threading.Lock()


def shared() -> Pool:
  """The pool of this process, made at the first call and ended with the interpreter."""
  global _shared
  with _shared_lock:
    if _shared is None:
      _shared = Pool()
    return _shared
