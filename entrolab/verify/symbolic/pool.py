"""Symbolic comparisons in a pool of workers: each ends as a verdict, right or wrong if it was
compared, else unknown with the reason."""

from collections.abc import Sequence

from entrolab.verify import Verdict
from entrolab.verify.workers import pool as workers

Job = tuple[str, str, int]  # canonical reference, canonical answer, decimals
SERVICE = "entrolab.verify.symbolic.service"


class Pool:
  """A pool of workers that compare; also a context manager. Arguments as of `workers.pool.Pool`."""

  def __init__(self, size: int | None = None, *, seconds: float = 2.0,
               batch_seconds: float = 120.0, memory: int = 2 << 30) -> None:
    self.workers = workers.Pool(SERVICE, size, seconds=seconds, batch_seconds=batch_seconds,
                                memory=memory)
    self.size = self.workers.size
    self.pids = self.workers.pids
    self.close = self.workers.close

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def run(self, jobs: Sequence[Job], *, seconds: float | None = None,
          batch_seconds: float | None = None) -> list[Verdict]:
    """A verdict for each job, in order, none later than its deadline; raises as
    `workers.pool.Pool.run` does."""
    results = self.workers.run([workers.Job(None, job) for job in jobs], seconds=seconds,
                               batch_seconds=batch_seconds)
    return [Verdict("unknown", result.lost) if result.lost else Verdict(*result.value)
            for result in results]


_shared: list[Pool] = []


def shared() -> Pool:
  """The pool of this process, made at the first call and ended with the interpreter."""
  if not _shared:
    _shared.append(Pool())
  return _shared[0]
