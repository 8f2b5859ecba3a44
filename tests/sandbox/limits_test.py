"""Limits of a sandbox: resources, deadlines, processes that stay, machines that cannot confine."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from entrolab.verify import code, codes
from entrolab.verify.code import Case, Command, Functions, Score
from entrolab.verify.sandbox.outside import Limits, Sandbox, SandboxError
from tests.sandbox.programs import ROOT, verdicts, with_limits

BOMBS = {
    "threads": ("import threading, time\ndef f():\n  n = 0\n  try:\n    while n < 500:\n"
                "      threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
                "      n += 1\n  except RuntimeError: pass\n  return n", "assert f() < 40"),
    "memory": ("def f():\n  kept = []\n  try:\n    while True: kept.append(bytes(1 << 24))\n"
               "  except MemoryError: n = len(kept)\n  return n", "assert f() < 32"),
    "descriptors": ("import os\ndef f():\n  n = 0\n  try:\n    while n < 500:\n      os.dup(1)\n"
                    "      n += 1\n  except OSError: pass\n  return n", "assert f() < 64"),
    "output": ("import sys\ndef f():\n  for _ in range(40):\n    print('x' * (1 << 20))\n"
               "    print('x' * (1 << 20), file=sys.stderr)\n  return 1", "assert f()"),
    "no core": ("import resource\ndef f(): return resource.getrlimit(resource.RLIMIT_CORE)",
                "assert f() == (0, 0)")}


def test_resources_are_bounded(box):
  found = code.verify([program for program, _ in BOMBS.values()],
                      [Functions(("f",), (test,)) for _, test in BOMBS.values()], sandbox=box)
  for name, (verdict, _) in zip(BOMBS, found, strict=True):
    assert verdict.status == "right", (name, verdict)


def test_the_throwaway_folder(box):
  program = """
import os, errno
def f(size):
  try:
    for n in range(100):
      with open(f"{n}", "wb") as file: file.write(bytes(size))
  except OSError as error: return errno.errorcode[error.errno]
def g(): return os.listdir()
"""
  bounded = with_limits(box, seconds=30.0, file=1 << 16, disk=1 << 20)
  test = "assert f(1 << 17) in ('EFBIG', 'EACCES')\nassert f(1 << 15) in ('ENOSPC', 'EACCES')"
  found = verdicts(bounded, [program] * 2, test, names=("f", "g"))
  assert codes(found) == [1, 1], found
  if box.kind == "bwrap":
    assert codes(verdicts(box, [program], "assert g() == [] and f(10) is None and g()",
                          names=("f", "g"))) == [1]


ENDLESS = ["def f():\n  while True: pass", "import time\ndef f(): time.sleep(1000)",
           "def f():\n  while True:\n    try: f()\n    except BaseException: pass",
           "import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n"
           "  except (OSError, ValueError): pass\ndef f(): signal.pause()"]


def descendants(pid: int) -> dict[int, str]:
  """Processes under `pid` with their start times."""
  found, todo = {}, [pid]
  while todo:
    for task in pathlib.Path(f"/proc/{todo.pop()}/task").glob("*/children"):
      try:
        for child in task.read_text().split():
          found[int(child)] = started(int(child))
          todo.append(int(child))
      except OSError:
        continue
  return found


def started(pid: int) -> str:
  """When a process started; "" when it is gone."""
  try:
    state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return ""
  return "" if state == "Z" else fields[18]


def survivors(seen: dict[int, str], seconds: float = 20.0) -> list[int]:
  """What of `seen` is still alive after at most `seconds`."""
  end = time.monotonic() + seconds
  while left := [pid for pid, start in seen.items() if start and started(pid) == start]:
    if time.monotonic() > end:
      break
    time.sleep(0.05)
  return left


def test_every_item_is_decided_in_time_and_nothing_is_left(box):
  short = with_limits(box, seconds=1.5)
  open_before = len(os.listdir("/proc/self/fd"))
  earlier = descendants(os.getpid()).items()  # workers of other pools of this process
  seen: dict[int, str] = {}
  done = threading.Event()

  def watch():
    while not done.is_set():
      seen.update(dict(descendants(os.getpid()).items() - earlier))
      time.sleep(0.05)

  watcher = threading.Thread(target=watch)
  watcher.start()
  try:
    begin = time.monotonic()
    found = verdicts(short, ENDLESS, "assert f() == 1")
    taken = time.monotonic() - begin
  finally:
    done.set()
    watcher.join()
  assert {v.why for v in found} == {"over the deadline of 1.5 s"} and codes(found) == [-1] * 4
  assert taken < 4 * 1.5 / short.size + 20 and len(seen) >= 8 and not survivors(seen)
  assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_batch_has_a_deadline(box):
  short = with_limits(box, seconds=60.0, batch_seconds=1.0)
  begin = time.monotonic()
  task = Functions(("f",), ("assert f() == 1",))
  found = code.verify(ENDLESS * 3 + [""], [task] * 13, sandbox=short)
  assert codes(v for v, _ in found) == [-1] * 12 + [0] and time.monotonic() - begin < 20
  assert {v.why for v, _ in found[:12]} == {"over the batch deadline of 1 s"}
  assert all(score == Score(0, 1) for _, score in found)


def test_what_was_passed_before_the_deadline_is_counted(box):
  program = "def f(x):\n  while x: pass\n  return x"
  (verdict, score), = code.verify([program], [Functions(("f",), (
      "assert f(0) == 0", "assert f(1) == 1"))], sandbox=with_limits(box, seconds=5.0))
  assert verdict.status == "unknown" and score == Score(1, 2)


DYING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
from entrolab.verify import code
from entrolab.verify.sandbox.outside import Limits, Sandbox
box = Sandbox(sys.argv[1], limits=Limits(seconds=300), size=2)
task = code.Functions(("f",), ("assert f() == 1",))
code.verify(["import time\\ndef f(): time.sleep(1000)"] * 2, [task] * 2, sandbox=box)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_parent_that_is_killed(box, how):
  parent = subprocess.Popen([sys.executable, "-c", DYING, box.kind], cwd=ROOT,
                            stderr=subprocess.DEVNULL, env={**os.environ,
                                                            "PYTHONPATH": str(ROOT)})
  try:
    end, seen = time.monotonic() + 60, {}
    while len(seen) < 4 and time.monotonic() < end:
      time.sleep(0.1)
      seen |= descendants(parent.pid)
    time.sleep(0.5)
    seen |= descendants(parent.pid)
    parent.send_signal(how)
    parent.wait(timeout=60)
    assert len(seen) >= 4 and not survivors(seen)
  finally:
    parent.kill()


def test_forks_are_bounded_and_do_not_stay(box):
  limits = Limits(seconds=3.0, fork=True, tasks=12)
  if box.kind == "seccomp":
    with pytest.raises(SandboxError, match="seccomp: without namespaces no program may fork"):
      Sandbox("seccomp", limits=limits)
    return
  forking = Sandbox("bwrap", limits=limits)
  task = Command(("sh", "{file}"), (Case("twice 3 | cat", "6"),))
  bomb = ":(){ : | : & }; :; while true; do :; done"
  daemon = "(setsid sleep 31337 &) ; (sleep 31338 &) ; twice() { echo 6; }"
  found = code.verify(["twice() { echo 6; }", bomb, daemon], [task] * 3, sandbox=forking)
  assert [v.status == "right" for v, _ in found] == [True, False, True], found
  for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      assert b"\0sleep\0003133" not in b"\0" + command.read_bytes(), command
    except OSError:
      continue


def test_where_nothing_can_be_had_the_error_says_what_was_tried(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(SandboxError, match="bwrap: bwrap is not on PATH .*apt-get.*; seccomp: with"):
    Sandbox(limits=Limits(fork=True))
  broken = tmp_path / "bwrap"
  broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
  broken.chmod(0o755)
  with pytest.raises(SandboxError, match="tried bwrap: bwrap: No permissions to create"):
    Sandbox("bwrap")
