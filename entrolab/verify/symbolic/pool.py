"""A pool of worker processes that any answer may hang or kill, and no answer can stop.

Workers are started by name (`python -m entrolab.verify.symbolic.worker`), so the caller's script
is not imported again, and only when a job needs them. A job past its deadline costs its worker's
child; a worker that does not report even that is killed with its session and replaced. Every job
ends as a verdict: right or wrong when it was compared, else unknown with the reason.
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
from entrolab.verify.symbolic import worker
from entrolab.verify.symbolic.compare import INSTALL

Job = tuple[str, str, int]       # canonical reference, canonical answer, decimals

_START = 120.0                   # seconds in which a worker must report itself
_GRACE = 2.0                     # seconds beyond a job's deadline before its worker is killed
_KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR",
         "SYSTEMROOT", "VIRTUAL_ENV")


def _environment() -> dict[str, str]:
  """What Python needs and no more: secrets of the parent stay with it."""
  kept = {name: os.environ[name] for name in _KEEP if name in os.environ}
  root = str(pathlib.Path(__file__).resolve().parents[3])  # where `entrolab` can be imported
  paths = [path for path in sys.path if path and os.path.exists(path)]
  return kept | {"PYTHONPATH": os.pathsep.join([*paths, root])}


class _Worker:
  """One worker process as the parent sees it: starting, idle or busy with a job."""

  def __init__(self, memory: int) -> None:
    self.process = subprocess.Popen(
        [sys.executable, "-P", "-m", "entrolab.verify.symbolic.worker"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_environment(),
        start_new_session=True)
    assert self.process.stdin and self.process.stdout
    self.inbox, self.outbox = self.process.stdout.fileno(), self.process.stdin.fileno()
    self.buffer = b""
    self.ready = False
    self.job: int | None = None
    self.deadline = time.monotonic() + _START
    self.send({"memory": memory})

  def send(self, message: dict) -> bool:
    """Whether the worker took the message: it is idle, so the pipe is empty and takes it whole."""
    try:
      worker.send(self.outbox, message)
    except BrokenPipeError:
      return False
    return True

  def read(self) -> tuple[list[dict], bool]:
    """(messages that have arrived, whether the worker is still there)."""
    data = os.read(self.inbox, 1 << 16)
    self.buffer += data
    messages = []
    while len(self.buffer) >= worker.HEAD.size:
      end = worker.HEAD.size + worker.HEAD.unpack_from(self.buffer)[0]
      if end > worker.HEAD.size + worker.LARGEST:
        return messages, False
      if len(self.buffer) < end:
        break
      messages.append(json.loads(self.buffer[worker.HEAD.size:end]))
      self.buffer = self.buffer[end:]
    return messages, bool(data)

  def end(self, seconds: float = 0.0) -> int:
    """Ends and reaps the process with its child; its exit code, negative for a signal.

    An idle worker leaves by itself within `seconds`; after that its whole session is killed.
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
  if os.getpid() != owner:             # a forked copy of the parent owns no workers
    return
  for one in workers:
    assert one.process.stdin
    one.process.stdin.close()          # all leave at the same time
  while workers:
    workers.pop().end(seconds=1.0)


class Pool:
  """Killable workers for symbolic comparison; also a context manager. Any thread may run a batch;
  batches take turns.

  size: workers (default: one a usable core, at most 4); seconds: wall time a job may take;
  batch_seconds: wall time a whole batch may take; memory: bytes of address space of a worker.
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
    self._failed_starts = 0
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
    """Process ids of the workers that are alive: `size` of them after any batch."""
    return [w.process.pid for w in self._workers if w.process.poll() is None]

  def run(self, jobs: Sequence[Job], *, seconds: float | None = None,
          batch_seconds: float | None = None) -> list[Verdict]:
    """One verdict for each job, in order; none takes longer than its deadline.

    Raises ImportError when math-verify is absent, RuntimeError when workers do not start.
    """
    if os.getpid() != self._owner:     # forked: the workers belong to the parent
      self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()
      self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)
    if not jobs:
      return []
    with self._lock:
      batch = _Batch(self, jobs, self.seconds if seconds is None else seconds,
                     self.batch_seconds if batch_seconds is None else batch_seconds)
      try:
        return batch.run()
      except BaseException:            # Ctrl-C included: no worker stays busy with a lost job
        _end_all(self._workers, self._owner)
        raise

  def _replace(self, at: int) -> None:
    self._workers[at].end()
    self._workers[at] = _Worker(self.memory)

  def _fill(self) -> None:
    for at, old in enumerate(self._workers):
      if old.process.poll() is not None:
        self._replace(at)
    while len(self._workers) < self.size:
      self._workers.append(_Worker(self.memory))


class _Batch:
  """The event loop of one call of `Pool.run`."""

  def __init__(self, pool: Pool, jobs: Sequence[Job], seconds: float,
               batch_seconds: float) -> None:
    self.pool, self.jobs, self.seconds = pool, jobs, seconds
    self.batch_seconds, self.end = batch_seconds, time.monotonic() + batch_seconds
    self.waiting = collections.deque(range(len(jobs)))
    self.verdicts: dict[int, Verdict] = {}
    self.lost: set[int] = set()          # jobs whose worker was killed from outside, once

  def run(self) -> list[Verdict]:
    pool = self.pool
    pool._fill()
    while len(self.verdicts) < len(self.jobs):
      self._give()
      now = time.monotonic()
      until = min([self.end, *(w.deadline for w in pool._workers if w.job is not None
                               or not w.ready)])
      with selectors.DefaultSelector() as selector:
        for at, one in enumerate(pool._workers):
          selector.register(one.inbox, selectors.EVENT_READ, at)
        events = selector.select(max(until - now, 0.0))
      for key, _ in events:
        self._hear(key.data)
      self._expire()
    return [self.verdicts[at] for at in range(len(self.jobs))]

  def _unknown(self, job: int | None, why: str) -> None:
    if job is not None:
      self.verdicts[job] = Verdict("unknown", why)

  def _give(self) -> None:
    for at, one in enumerate(self.pool._workers):
      if self.waiting and one.ready and one.job is None:
        job = self.waiting.popleft()
        if one.send({"job": self.jobs[job], "seconds": self.seconds}):
          one.job, one.deadline = job, time.monotonic() + self.seconds + _GRACE
        else:                          # it died while idle: not this job's doing
          self.waiting.appendleft(job)
          self.pool._replace(at)

  def _hear(self, at: int) -> None:
    one = self.pool._workers[at]
    messages, alive = one.read()
    for message in messages:
      if "error" in message:
        raise ImportError(f"a verifier worker cannot import math-verify ({message['error']}): "
                          f"{INSTALL}")
      if "ready" in message:
        one.ready, self.pool._failed_starts = True, 0
      elif one.job is not None:
        self.verdicts[one.job] = Verdict(message["status"], message["why"])
        one.job = None
    if not alive:
      if one.job is not None and one.job not in self.lost:
        self.lost.add(one.job)           # comparing cannot kill it: the job gets another worker
        self.waiting.appendleft(one.job)
        one.job = None
      self._lost(at, "two verifier workers died over this comparison")

  def _lost(self, at: int, why: str) -> None:
    """Replaces a worker that died or hung; raises RuntimeError when none of them starts."""
    pool, one = self.pool, self.pool._workers[at]
    self._unknown(one.job, why)
    if not one.ready:
      pool._failed_starts += 1
      if pool._failed_starts > 2 * pool.size:
        code = one.end()
        raise RuntimeError(f"no verifier worker starts: {sys.executable} -m "
                           f"entrolab.verify.symbolic.worker ended with code {code}")
    pool._replace(at)

  def _expire(self) -> None:
    now = time.monotonic()
    for at, one in enumerate(self.pool._workers):
      if one.job is None and one.ready:
        continue
      if now >= one.deadline:
        self._lost(at, f"over the deadline of {self.seconds:g} s")
    if now < self.end:
      return
    why = f"over the batch deadline of {self.batch_seconds:g} s"
    for at, one in enumerate(self.pool._workers):
      if one.job is not None:
        self._unknown(one.job, why)
        self.pool._replace(at)
    while self.waiting:
      self._unknown(self.waiting.popleft(), why)


_shared: Pool | None = None
_shared_lock = threading.Lock()


def shared() -> Pool:
  """The process's own pool, made when first asked for and ended with the interpreter."""
  global _shared
  with _shared_lock:
    if _shared is None:
      _shared = Pool()
    return _shared
