"""Confined processes as their parent sees them: the kinds of sandbox and how one is started.

bwrap    bubblewrap: separate namespaces of processes, network and users, an empty /scratch of
         bounded size, and no files except the interpreter's; in addition rlimits and seccomp
seccomp  rlimits, another user id (when started by root), Landlock (kernel 5.13) and seccomp; the
         program can neither write files nor start processes

What a confined process does is in `inside`.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import secrets
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal

from entrolab.verify.sandbox import inside, roles, seccomp, values

Kind = Literal["bwrap", "seccomp"]
KINDS: tuple[Kind, ...] = ("bwrap", "seccomp")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache",
           "/etc/alternatives", "/etc/ssl/openssl.cnf")
_PYTHON = os.path.realpath(sys.executable)
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_TRIAL_SECONDS = 60.0  # in which a trial run must answer


class SandboxError(RuntimeError):
  """Programs cannot be confined on this machine; the text says what was tried."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
  """What an item may use. Raises ValueError for a limit that is not positive."""
  seconds: float = 5.0  # wall time of all its tests, the start of its processes included
  memory: int = 512 << 20  # bytes of address space of each process
  output: int = 64 << 10  # bytes of output
  file: int = 1 << 20  # bytes of a file that it writes
  disk: int = 16 << 20  # bytes of /scratch
  tasks: int = 32  # processes and threads
  fork: bool = False  # whether it may start processes, each of which may use `memory`

  def __post_init__(self) -> None:
    for name in ("seconds", "memory", "output", "file", "disk", "tasks"):
      if getattr(self, name) <= 0:
        raise ValueError(f"Limits({name}={getattr(self, name)}): must be positive")


def _unused_user_id() -> int:
  """A user id that is likely to be unused: the kernel counts processes by user (RLIMIT_NPROC)."""
  with open("/proc/self/uid_map") as file:
    ranges = [row.split() for row in file]
  top = min(max(int(first) + int(count) for first, _, count in ranges), 1 << 31)
  return top - 2 - secrets.randbelow(min(1 << 20, top // 16))


def _has_capability(number: int) -> bool:
  """Whether this process may use a capability of the kernel, and pass it on."""
  with open("/proc/self/status") as file:
    sets = dict(line.split(":") for line in file if line.startswith(("CapPrm", "CapBnd")))
  return all(int(held, 16) >> number & 1 for held in sets.values())


class Run:
  """Processes that run until their output ends.

  processes: those that run; output: the descriptor to read; most: bytes of output that are read;
  leave: seconds in which a process may end by itself once its output has ended.
  """

  def __init__(self, processes: list[subprocess.Popen], output: int, most: int,
               leave: float = 0.0) -> None:
    self.processes, self.output, self.most, self.leave = processes, output, most, leave
    self.ended = False  # whether the output has
    self.data = b""  # the output so far: written by code that nobody trusts
    self.status: list[str] = []  # what each process reported before it ran such code; after `end`
    self.codes: list[int] = []  # how each process ended, negative where it was killed; after `end`

  def read(self) -> bool:
    """Reads what has arrived; whether the output has ended or is too long."""
    part = os.read(self.output, 1 << 16)
    self.data += part
    self.ended = not part
    return self.ended or len(self.data) > self.most

  def end(self) -> None:
    """Kills and reaps the processes, and reads what each reported before it was confined."""
    for process in self.processes:
      if self.ended and self.leave:
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(self.leave)
      process.kill()
    for process in self.processes:
      self.codes.append(process.wait())
      assert process.stderr
      # a descendant may still hold the pipe: take what is there, never wait for its end
      os.set_blocking(process.stderr.fileno(), False)
      self.status.append((process.stderr.read() or b"")[:500].decode(errors="replace"))
      process.stderr.close()
    self.processes = []
    os.close(self.output)


class Sandbox:
  """Where programs run. Nothing runs between batches.

  kind: one of KINDS; None: the first that works.
  size: items that run at the same time; None: as many as there are usable cores.
  limits: of each item.
  batch_seconds: wall time of a whole batch.
  read: further folders that programs may read, and that Python programs may import from.

  Raises ValueError for a kind or size out of range, SandboxError, with what was tried, when no
  trial run is confined.
  """

  def __init__(self, kind: Kind | None = None, *, size: int | None = None,
               limits: Limits = Limits(), batch_seconds: float = 600.0,
               read: Sequence[str] = ()) -> None:
    if kind is not None and kind not in KINDS:
      raise ValueError(f"sandbox kind {kind!r}; choices: {', '.join(KINDS)}")
    self.size = len(os.sched_getaffinity(0)) if size is None else size
    self.limits, self.batch_seconds = limits, batch_seconds
    if self.size <= 0 or batch_seconds <= 0:
      raise ValueError(f"Sandbox(size={size}, batch_seconds={batch_seconds}): must be positive")
    self.read = [os.path.realpath(path) for path in read]
    tried = []
    for self.kind in KINDS if kind is None else (kind,):
      failed = self._trial()
      if not failed:
        return
      tried.append(f"{self.kind}: {failed}")
    raise SandboxError(f"no program can be confined here; tried {'; '.join(tried)}")

  def check_confined(self, status: str) -> None:
    """Raises SandboxError unless a process reported that it was confined before it ran a program.

    status: the entry of `Run.status`, which the process writes before it runs what nobody trusts.
    """
    if "ready" in status and "failed:" not in status:
      return
    reason = status.replace("ready\n", "").strip() or "a process ended before it was confined"
    raise SandboxError(f"{self.kind}: {reason}")

  def _trial(self) -> str:
    """Why this kind does not work here; empty if it does: a confined function returns 7."""
    if self.kind == "bwrap" and not shutil.which("bwrap"):
      return "bwrap is not on PATH (Debian: apt-get install bubblewrap)"
    if self.kind == "seccomp" and self.limits.fork:
      return "without namespaces no program may fork"
    calls, to_calls = os.pipe()
    answers, to_answers = os.pipe()
    orders = {"role": "program", "text": "def f(x): return x", "inbox": calls,
              "outbox": to_answers}
    try:
      run = Run([self.start(orders, subprocess.DEVNULL, (calls, to_answers))], answers, 4096)
      values.Channel(-1, to_calls).write(values.packed(
          {"call": "f", "args": [7], "named": values.plain({})}))
    except OSError as error:
      os.close(answers)
      return str(error)
    finally:
      for fd in (calls, to_calls, to_answers):
        os.close(fd)
    ended = False
    while not ended and b"\n" not in run.data:
      readable, _, _ = select.select([answers], [], [], _TRIAL_SECONDS)
      if not readable:
        break
      ended = run.read()
    run.end()
    if run.data == b'{"value": 7}\n':
      return ""
    return run.status[0].strip() or "a trial run hangs"

  def _bwrap(self, folders: list[str]) -> list[str]:
    """The command line of bubblewrap up to the program; `folders` are visible, read-only."""
    words = [str(shutil.which("bwrap")), "--unshare-pid", "--unshare-net", "--unshare-ipc",
             "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--cap-drop", "ALL"]
    if os.geteuid():
      words += ["--unshare-user"]
    else:  # the process needs these to take another user id, which removes them again
      words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
      if _has_capability(inside.READ_ANYWHERE):
        words += ["--cap-add", "CAP_DAC_READ_SEARCH"]
    for path in folders:
      for above in reversed(pathlib.PurePath(path).parents[:-1]):
        words += ["--perms", "0755", "--dir", str(above)]  # else that user cannot enter them
      if os.path.islink(path):
        words += ["--symlink", os.readlink(path), path]
      elif os.path.exists(path):
        words += ["--ro-bind", path, path]
    return [*words, "--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size",
            str(self.limits.disk), "--tmpfs", "/scratch", "--remount-ro", "/dev",
            "--remount-ro", "/", "--chdir", "/scratch", "--"]

  def start(self, orders: dict[str, Any], stdout: int, pipes: Sequence[int] = (),
            folders: Sequence[str] = ()) -> subprocess.Popen:
    """Starts a confined process that follows `orders` (see `inside`).

    stdout: its descriptor 1; pipes: further descriptors that it inherits; folders: further folders
    that it may read. It reads its orders from a memory file, so that neither its command line nor
    its environment shows them to other processes.
    """
    alone = self.kind == "seccomp"  # no namespace protects other processes from it
    root = os.geteuid() == 0
    # the kernel counts threads by user: those of an ordinary user together with all other
    # processes of that user, so that without a namespace no limit on threads makes sense
    threads = root or not alone
    limits = self.limits
    rlimits = {"AS": limits.memory, "CPU": math.ceil(limits.seconds) + 1, "FSIZE": limits.file,
               "NOFILE": 64, "CORE": 0}
    if threads:
      rlimits["NPROC"] = limits.tasks
    visible = [*_SYSTEM, os.path.realpath(sys.base_prefix), os.path.dirname(_PYTHON),
               inside.__file__, values.__file__, roles.__file__, *self.read, *folders]
    filter_code = seccomp.program(os.uname().machine, fork=limits.fork, threads=threads,
                                  alone=alone, execute=orders["role"] == "command")
    # nothing of the parent's environment is passed on but the path of the interpreter's libraries
    home = {"HOME": "/"} if alone else {"HOME": "/scratch", "TMPDIR": "/scratch"}
    library = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    environment = _ENVIRONMENT | home | library
    orders = orders | {
        "limits": rlimits, "alone": alone, "user": _unused_user_id() if root else 0,
        "read": visible, "path": self.read, "parent": os.getpid(), "filter": filter_code.hex(),
        "environment": environment | orders.get("environment", {})}
    words = [_PYTHON, "-P", "-s", "-S", "-B", inside.__file__]
    if not alone:
      words = self._bwrap(visible) + words
    memory = os.memfd_create("orders")
    try:
      with open(memory, "wb", closefd=False) as file:
        file.write(json.dumps(orders).encode())
      os.lseek(memory, 0, os.SEEK_SET)
      return subprocess.Popen(words, stdin=memory, stdout=stdout, stderr=subprocess.PIPE, cwd="/",
                              pass_fds=pipes, env=environment, start_new_session=True, bufsize=0)
    finally:
      os.close(memory)
