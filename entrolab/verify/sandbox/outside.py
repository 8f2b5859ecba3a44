"""Confined processes as their parent sees them: the kinds of sandbox and how one is started.

bwrap    bubblewrap: own processes, network, users, an empty /scratch of bounded size, and no file
         but the interpreter's; inside it rlimits and seccomp
seccomp  rlimits, another user id (when started by root), Landlock (kernel 5.13) and seccomp; it
         can write nothing at all and start no process

What happens inside is in `inside`.
"""

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

from entrolab.verify.sandbox import inside, seccomp

Kind = Literal["bwrap", "seccomp"]
KINDS: tuple[Kind, ...] = ("bwrap", "seccomp")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache",
           "/etc/alternatives", "/etc/ssl/openssl.cnf")
_PYTHON = os.path.realpath(sys.executable)
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_START = 60.0          # seconds in which a trial run must answer


class SandboxError(RuntimeError):
  """Programs cannot be confined here; the text says what was tried."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
  """What an item may use: wall seconds for all its tests and the start of its processes; bytes of
  address space of a process, of output, of a file, of /scratch; processes and threads; whether
  it may fork (then memory may be used by as many processes)."""
  seconds: float = 5.0
  memory: int = 512 << 20
  output: int = 64 << 10
  file: int = 1 << 20
  disk: int = 16 << 20
  tasks: int = 32
  fork: bool = False

  def __post_init__(self) -> None:
    for name in ("seconds", "memory", "output", "file", "disk", "tasks"):
      if getattr(self, name) <= 0:
        raise ValueError(f"Limits({name}={getattr(self, name)}): must be positive")


def _stranger() -> int:
  """A user id that nobody else is likely to have: its processes are counted apart."""
  with open("/proc/self/uid_map") as file:
    top = min(max(int(row.split()[0]) + int(row.split()[2]) for row in file), 1 << 31)
  return top - 2 - secrets.randbelow(min(1 << 20, top // 16))


class Run:
  """Processes that run until their output ends, and that output up to `most` bytes."""

  def __init__(self, processes: list[subprocess.Popen], output: int, most: int) -> None:
    self.processes, self.output, self.most = processes, output, most
    self.data = b""
    self.status: list[str] = []

  def read(self) -> bool:
    """Whether the output has ended or is too long."""
    part = os.read(self.output, 1 << 16)
    self.data += part
    return not part or len(self.data) > self.most

  def end(self) -> None:
    """Kills and reaps what is left, and reads what each process said before it was confined."""
    for process in self.processes:
      process.kill()
    for process in self.processes:
      process.wait()
      assert process.stderr
      os.set_blocking(process.stderr.fileno(), False)
      self.status.append((process.stderr.read() or b"")[:500].decode(errors="replace"))
      process.stderr.close()
    self.processes = []
    os.close(self.output)


class Sandbox:
  """Where programs run: a kind of confinement, how many items at once, and their limits.

  kind: one of KINDS, or None for the first that works; size: items at once (default: usable
  cores); batch_seconds: wall time of a whole batch; read: further folders that programs may read,
  and Python programs import from. Nothing runs between batches.

  Raises SandboxError, with what was tried, when a trial run is not confined.
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

  def _trial(self) -> str:
    """Why this kind does not work, or ""."""
    if self.kind == "bwrap" and not shutil.which("bwrap"):
      return "bwrap is not on PATH (Debian: apt-get install bubblewrap)"
    if self.kind == "seccomp" and self.limits.fork:
      return "without namespaces no program may fork"
    (calls, call), (answers, answer) = os.pipe(), os.pipe()
    orders = {"role": "program", "text": "def f(x): return x", "inbox": calls, "outbox": answer}
    try:
      run = Run([self.start(orders, subprocess.DEVNULL, (calls, answer))], answers, 4096)
      inside.Channel(-1, call).write(inside.packed(
          {"call": "f", "args": [7], "named": inside.plain({})}))
    except OSError as error:
      os.close(answers)
      return str(error)
    finally:
      for fd in (calls, call, answer):
        os.close(fd)
    ended = False
    while not ended and b"\n" not in run.data and select.select([answers], [], [], _START)[0]:
      ended = run.read()
    run.end()
    return "" if run.data == b'{"value": 7}\n' else run.status[0].strip() or "a trial run hangs"

  def _wrapped(self, folders: list[str]) -> list[str]:
    """The command line of bubblewrap up to the program."""
    words = [str(shutil.which("bwrap")), "--unshare-pid", "--unshare-net", "--unshare-ipc",
             "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--cap-drop", "ALL"]
    if os.geteuid():
      words += ["--unshare-user"]
    else:                          # to become a stranger, which takes these two away again
      words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for path in folders:
      for above in reversed(pathlib.PurePath(path).parents[:-1]):
        words += ["--perms", "0755", "--dir", str(above)]      # else the stranger cannot pass
      if os.path.islink(path):
        words += ["--symlink", os.readlink(path), path]
      elif os.path.exists(path):
        words += ["--ro-bind", path, path]
    return [*words, "--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size",
            str(self.limits.disk), "--tmpfs", "/scratch", "--remount-ro", "/dev",
            "--remount-ro", "/", "--chdir", "/scratch", "--"]

  def start(self, orders: dict[str, Any], stdout: int, pipes: Sequence[int] = (),
            folders: Sequence[str] = ()) -> subprocess.Popen:
    """A confined process that follows `orders`, which it reads from a memory file."""
    limits, alone, root = self.limits, self.kind == "seccomp", os.geteuid() == 0
    bounds = {"AS": limits.memory, "CPU": math.ceil(limits.seconds) + 1, "FSIZE": limits.file,
              "NOFILE": 64, "CORE": 0}
    threads = root or not alone    # an ordinary user's are counted with all others of that user
    bounds |= {"NPROC": limits.tasks} if threads else {}
    visible = [*_SYSTEM, os.path.realpath(sys.base_prefix), os.path.dirname(_PYTHON),
               inside.__file__, *self.read, *folders]
    orders = orders | {
        "limits": bounds, "alone": alone, "user": _stranger() if root else 0, "read": visible,
        "path": self.read, "parent": os.getpid(), "filter": seccomp.program(
            os.uname().machine, fork=limits.fork, threads=threads, alone=alone,
            execute=orders["role"] == "command").hex()}
    words = [_PYTHON, "-P", "-s", "-S", "-B", inside.__file__]
    home = {"HOME": "/scratch", "TMPDIR": "/scratch"} if not alone else {"HOME": "/"}
    library = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    environment = _ENVIRONMENT | home | library
    orders["environment"] = environment | orders.get("environment", {})
    memory = os.memfd_create("orders")
    try:
      with open(memory, "wb", closefd=False) as file:
        file.write(json.dumps(orders).encode())
      os.lseek(memory, 0, os.SEEK_SET)
      return subprocess.Popen(words if alone else self._wrapped(visible) + words, stdin=memory,
                              stdout=stdout, stderr=subprocess.PIPE, cwd="/", pass_fds=pipes,
                              env=environment, start_new_session=True, bufsize=0)
    finally:
      os.close(memory)
