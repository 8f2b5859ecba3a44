"""Programs in their sandboxes: verdicts, what crosses, and every way out that has been tried."""

import ast
import builtins
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from entrolab.verify import code, codes
from entrolab.verify.code import Case, Command, Functions, Score, reward
from entrolab.verify.sandbox import inside, seccomp
from entrolab.verify.sandbox.outside import KINDS, Limits, Sandbox, SandboxError

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEEDLE = 918273645019             # what the tests expect, and a program must not find
DOUBLE = Functions(("f",), ("assert f(3) == 6", "assert f([1]) == [1, 1]", "assert f('') == ''"))


@pytest.fixture(scope="module", params=KINDS)
def box(request):
  try:
    return Sandbox(request.param, limits=Limits(seconds=30.0))
  except SandboxError as error:
    pytest.skip(str(error))


def with_limits(box: Sandbox, **limits) -> Sandbox:
  """The same kind of sandbox with other limits."""
  batch = limits.pop("batch_seconds", 600.0)
  return Sandbox(box.kind, limits=Limits(**limits), batch_seconds=batch)


def verdicts(box, programs, *tests, names=("f",), setup=""):
  task = Functions(names, tests, setup)
  return [verdict for verdict, _ in code.verify(programs, [task] * len(programs), sandbox=box)]


def test_reward_is_the_fraction_and_a_bonus():
  assert reward(Score(2, 3)) == pytest.approx(2 / 3) and reward(Score(3, 3)) == 2.0
  assert reward(Score(2, 3), base=0) == 0.0 and reward(Score(3, 3), base=0) == 1.0
  assert reward(Score(3, 3), bonus=0) == 1.0 and reward(Score(0, 0)) == 0.0


@pytest.mark.parametrize("text, program", [
    ("x = 1", "x = 1"),
    ("so\n```python\nx = 1\n```\nor\n```\ny\n```\n", "x = 1\n"),
    ("```py\nold\n```\n```python\n  new\n```", "  new\n"),
    ("```python\nno\n```</think>text\n```\nx\n```", "x\n"),
    ("```python\nno\n```<answer>x = 2</answer>", "x = 2"),
    ("```python\nx = 3", "\nx = 3"), ("", "")])
def test_the_program_of_an_answer(text, program):
  assert code.program_of(text, ("python", "py")) == program


def test_tasks_and_limits_are_checked_where_they_are_written(box):
  with pytest.raises(ValueError, match="needs names and tests"):
    Functions(("f",), ())
  with pytest.raises(ValueError, match="needs cases and {file}"):
    Command(("sh",), (Case("", ""),))
  with pytest.raises(ValueError, match=r"Limits\(memory=0\)"):
    Limits(memory=0)
  with pytest.raises(ValueError, match="sandbox kind 'docker'; choices: bwrap, seccomp"):
    Sandbox("docker")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="1 texts for 0 tasks"):
    code.verify([""], [], sandbox=box)
  with pytest.raises(ValueError, match="row 0: interpreter 'no-such-q' is not on PATH"):
    code.verify([""], [Command(("no-such-q", "{file}"), (Case("", ""),))], sandbox=box)


def test_verdicts_and_fractions(box):
  programs = {
      "def f(x): return x * 2": (1, 3, ""),
      "```python\nimport math\nf = lambda x: x + x\n```": (1, 3, ""),
      "def f(x): return 6 if x == 3 else None": (0, 1, "test 2: AssertionError"),
      "def f(x): return 2 * x if x else 1 / 0": (0, 2, "test 3: ZeroDivisionError"),
      "def f(x): import": (0, 0, "the program raises SyntaxError"),
      "g = 1": (0, 0, "the program defines no f"),
      "def f(x): return object()": (0, 0, "returns no plain data"),
      " \n": (0, 0, "no program"),
      "#" * 300_000: (0, 0, "at most 200000"),
      "\0": (0, 0, "the program raises"), "x = '\ud800'": (0, 0, "the program raises")}
  found = code.verify(list(programs), [DOUBLE] * len(programs), sandbox=box)
  for (verdict, score), (status, passed, why) in zip(found, programs.values(), strict=True):
    assert (verdict.code, score.passed, score.total) == (status, passed, 3), verdict
    assert why in verdict.why


def test_what_crosses_keeps_its_type(box):
  tests = [f"assert f({value}) == {value} and type(f({value})) is type({value})" for value in (
      "None", "True", "-1", "10 ** 5000", "0.1", "1e400", "2j", "'\\ud800\\0é'", "b'\\xff'",
      "bytearray(b'a')", "[1, (2, [3])]", "(1, 2)", "{1, 2}", "frozenset('ab')", "range(9)",
      "{(1, 2): {'a': [None]}, 3: ()}")]
  tests += ["assert f((1,)) != [1]", "x = f(float('nan')); assert x != x",
            "assert g(4) != [0, 1, 2, 3] and sum(g(4)) == 6", "assert h() == {'a': 2}",
            "assert f(x=5) == 5"]
  program = """
import collections
def f(x): return x
def g(n): yield from range(n)
def h(): return collections.Counter("aa")
"""
  verdict, = verdicts(box, [program], *tests, names=("f", "g", "h"))
  assert verdict.status == "right", verdict


def test_exceptions_cross_by_name(box):
  test = "try:\n  f()\nexcept {}:\n  pass\nelse:\n  assert False"
  program = "class Own(Exception): pass\ndef f(): raise {}"
  right = verdicts(box, [program.format("ValueError('no')")], test.format("ValueError"))
  wrong = verdicts(box, [program.format(what) for what in (
      "KeyError", "Own()", "SystemExit(0)", "KeyboardInterrupt")], test.format("ValueError"))
  bare = verdicts(box, [program.format("SystemExit")], test.format("BaseException"))
  assert codes(right) == [1] and codes(wrong) == [0] * 4 and codes(bare) == [0]
  assert "KeyError: " in verdicts(box, [program.format("KeyError('no')")], "f()")[0].why
  short = verdicts(box, ["def f(x): raise StopIteration"], "assert all(map(f, [1, 2]))")
  assert codes(short) == [0], "a loop of the tests ends when they say so"


def test_tests_at_fault_leave_it_unknown(box):
  faults = {
      "assert f(": "test 1 is no Python", "assert f(1) == unheard_of": "NameError",
      "import unheard_of": "ModuleNotFoundError", "f(lambda: 1)": "no plain data",
      "import os; os._exit(0)": "the tests ended early", "f('x' * 2_000_000)": "can cross"}
  found = code.verify(["def f(x): return x"] * len(faults),
                      [Functions(("f",), (test,)) for test in faults], sandbox=box)
  for (verdict, _), why in zip(found, faults.values(), strict=True):
    assert verdict.status == "unknown" and why in verdict.why, verdict


def test_chance_and_hashes_repeat(box):
  program = "import random\ndef f(x): return x == [random.random(), hash('a')]"
  verdict, = verdicts(box, [program], "import random\nassert f([random.random(), hash('a')])")
  assert verdict.status == "right", verdict


# Ways to learn what is expected. Each program returns what it finds; the number
# is known by its remainders, so that no program holds it.
SEARCH = """
import gc, glob, inspect, os, re, sys
def walk(thing, depth=4):
  for digits in re.findall("9[0-9]{11}", str(thing)[:1 << 22]):
    if int(digits) % 999983 == 255932 and int(digits) % 65537 == 3409: return int(digits)
  if depth and isinstance(thing, (dict, list, tuple, set)):
    for item in list(thing.values() if isinstance(thing, dict) else thing)[:2000]:
      found = walk(item, depth - 1)
      if found: return found
def first(things):
  for thing in things:
    try: found = walk(thing)
    except Exception: continue
    if found: return found
def read(path):
  with open(path, "rb", buffering=0) as file: return file.read(1 << 20).decode("latin-1")
def memory(pid):
  for line in read(f"/proc/{pid}/maps").splitlines():
    low, high = (int(end, 16) for end in line.split()[0].split("-"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
      file.seek(low)
      yield file.read(min(high - low, 1 << 22)).decode("latin-1")
def files(*roots):
  for root in roots:
    for folder, _, names in os.walk(root):
      for name in names[:200]:
        try: yield read(os.path.join(folder, name))
        except OSError: pass
"""
FINDERS = {
    "frames": "first(vars for frame in inspect.stack() for vars in (frame.frame.f_locals,"
              " frame.frame.f_globals))",
    "caller": "first([sys._getframe(n).f_locals for n in range(1, 6)])",
    "collector": "first(thing for thing in gc.get_objects() if isinstance(thing, (dict, list)))",
    "modules": "first(vars(module) for module in list(sys.modules.values()))",
    "arguments": "first([sys.argv, sys.orig_argv, dict(os.environ)])",
    "descriptors": "first(os.pread(fd, 1 << 16, 0) for fd in range(64) if not os.isatty(fd))",
    "disk": "first(files('TESTS', '/tmp', '/dev/shm', '/scratch', os.getcwd()))",
    "processes": "first(read(path) for name in ('cmdline', 'environ', 'status', 'fd/0', 'fd/3',"
                 " 'fd/4') for path in glob.glob(f'/proc/[0-9]*/{name}'))",
    "memory": "first(text for pid in os.listdir('/proc') if pid.isdigit() and pid != 'self'"
              " and int(pid) != os.getpid() for text in memory(pid))"}
SAFE = """
def f(x):
  try: return {}
  except Exception: return None
"""


def test_nothing_shows_what_is_expected(box, tmp_path):
  for folder in (tmp_path, *tmp_path.parents[:-2]):
    folder.chmod(0o755)                        # as a data set would lie there
  (tmp_path / "tests.jsonl").write_text(f"assert f(3) == {NEEDLE}")
  programs = [SEARCH + SAFE.format(finder.replace("TESTS", str(tmp_path)))
              for finder in FINDERS.values()]
  found = verdicts(box, programs, f"assert f(3) == {NEEDLE}", f"assert f(4) == {NEEDLE}")
  for name, verdict in zip(FINDERS, found, strict=True):
    assert verdict.status == "wrong" and "test 1: AssertionError" in verdict.why, (name, verdict)
  seen = verdicts(box, [SEARCH + SAFE.format(FINDERS[name]) for name in ("frames", "collector")],
                  f"assert f([{NEEDLE}]) == {NEEDLE}")
  assert codes(seen) == [1, 1], "the searches find what is there to be found"


FORGERIES = {
    "equal to all": "class E:\n  __eq__ = lambda s, o: True\n  __hash__ = None\n"
                    "def f(x): return E()",
    "equal integer": "class E(int):\n  __eq__ = lambda s, o: True\n  __hash__ = int.__hash__\n"
                     "def f(x): return E(1)",
    "builtins": "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\n"
                "builtins.isinstance = lambda *a: True\nbuiltins.int = lambda *a: 6\n"
                "def f(x): return None",
    "harness": "import json, sys\nm = sys.modules['__main__']\nm.plain = lambda v: v\n"
               "m.judge = m.Channel.receive = lambda *a, **k: None\ndef f(x): return None",
    "verdict on all descriptors": "import os\ndef f(x):\n  for fd in range(64):\n"
               "    for line in (b'{\"secret\": \"\", \"test\": 0, \"passed\": true}\\n',"
               " b'{\"end\": true}\\n', b'\\xff[[[\\n'):\n"
               "      try: os.write(fd, line)\n      except OSError: pass\n  return 6",
    "deep reply": "import os\ndef f(x):\n  for fd in range(3, 64):\n"
                  "    try: os.write(fd, b'{\"value\":' + b'[' * 60000 + b'\\n')\n"
                  "    except OSError: pass",
    "exit": "import os\ndef f(x): os._exit(0)", "exit while loading": "import os\nos._exit(0)",
    "SystemExit": "import sys\ndef f(x): sys.exit(0)",
    "atexit": "import atexit, os, sys\natexit.register(os._exit, 0)\n"
              "def f(x): atexit._run_exitfuncs()",
    "AssertionError": "def f(x): raise AssertionError",
    "recursion": "def f(x): return f(x)",
    "end of the stack": "import sys\nsys.setrecursionlimit(10 ** 9)\n"
                        "def f(x): return sorted([x], key=f)",
    "recursive data": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "long data": "def f(x): return 'x' * (1 << 22)",
    "memory": "def f(x): return bytes(1 << 33)",
    "name of a test": "__name__ = 'tests'\ndef f(x): import tests; return 6",
    "crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "suicide": "import os\ndef f(x):\n  os.kill(0, 9)\n  os.kill(-1, 9)"}


def test_forgeries_and_exits_are_wrong(box):
  honest = "def f(x): return x * 2"
  found = code.verify([honest, *FORGERIES.values(), honest], [DOUBLE] * (len(FORGERIES) + 2),
                      sandbox=box)
  assert codes([found[0][0], found[-1][0]]) == [1, 1]
  for name, (verdict, score) in zip(FORGERIES, found[1:-1], strict=True):
    assert verdict.status == "wrong" and score.passed < 3, (name, verdict)


# Ways out. Each program returns the list of what it managed to do.
WAYS = {
    "network": """
import ctypes, socket
for family, address in ((socket.AF_INET, ("127.0.0.1", PORT)), (socket.AF_INET6, ("::1", PORT)),
                        (socket.AF_UNIX, "\\0abstract")):
  attempt(family, lambda: socket.socket(family, socket.SOCK_DGRAM))
  attempt(address, lambda: socket.create_connection(("127.0.0.1", PORT), timeout=1))
attempt("raw call", lambda: call(41 if x86 else 198, 2, 1, 0))
attempt("io_uring", lambda: call(425, 1, ctypes.create_string_buffer(200)))
""",
    "files": """
for path in ("OUTSIDE/new", "OUTSIDE/old", "/tmp/entrolab-escape", "/dev/shm/entrolab-escape",
             "/var/tmp/entrolab-escape", "/usr/entrolab-escape", "/entrolab-escape",
             os.path.expanduser("~root/entrolab-escape"), sys.modules["__main__"].__file__):
  attempt(path, lambda: open(path, "w"))
  attempt(path, lambda: open(path, "a"))
  attempt(path, lambda: os.mkdir(path + "-folder"))
for path in ("OUTSIDE/old", sys.modules["__main__"].__file__, os.__file__):
  attempt("truncate", lambda: os.truncate(path, 0))
  attempt("empty", lambda: os.open(path, os.O_RDONLY | os.O_TRUNC))
  attempt("mode", lambda: os.chmod(path, 0o777))
  attempt("time", lambda: os.utime(path))
  attempt("link", lambda: os.link(path, path + ".link"))
  attempt("symbolic link", lambda: os.symlink(path, path + ".link"))
  attempt("rename", lambda: os.rename(path, path + ".moved"))
  attempt("remove", lambda: os.remove(path))
attempt("read", lambda: open("OUTSIDE/old").read())
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("memory file", lambda: os.memfd_create("x"))
attempt("shared memory", lambda: call(29 if x86 else 194, 0, 4096, 0o1777))
""",
    "processes": """
import ctypes, subprocess
attempt("fork", os.fork)
attempt("command", lambda: subprocess.run(["/bin/true"]))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("raw fork", lambda: call(57 if x86 else 220, 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, ctypes.create_string_buffer(88), 88))
attempt("kill", lambda: os.kill(PARENT, 9))
attempt("probe", lambda: os.kill(PARENT, 0))
attempt("trace", lambda: call(101 if x86 else 117, 16, PARENT, 0, 0))
attempt("read memory", lambda: open(f"/proc/PARENT/mem", "rb").read(1))
attempt("peek", lambda: call(310 if x86 else 270, PARENT, None, 0, None, 0, 0))
attempt("limits of others", lambda: call(302 if x86 else 261, PARENT, 0, None, None))
attempt("descriptor", lambda: call(438, 0, 0, 0))
attempt("survive", lambda: prctl(1, 0))
attempt("namespace", lambda: call(272 if x86 else 97, 0x10000000))
attempt("mount", lambda: call(165 if x86 else 40, b"x", b"/", b"tmpfs", 0, None))
attempt("root", lambda: os.setuid(0) if os.getuid() else done.append("is root"))
attempt("more", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)))
attempt("x32", lambda: call(0x40000000 + 41, 2, 1, 0) if x86 else call(9999))
done += [] if prctl(39, 0) == 1 and prctl(21, 0) == 2 else ["no filter"]
"""}
WAY = """
import os, resource, sys, ctypes
x86 = os.uname().machine == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)
done = []
def checked(result):
  if result < 0: raise OSError(ctypes.get_errno(), "refused")
  return result
def call(number, *values):
  return checked(libc.syscall(ctypes.c_long(number), *(
      ctypes.c_long(v) if isinstance(v, int) else v for v in values)))
def prctl(option, value):
  zero = ctypes.c_ulong(0)
  return checked(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))
def attempt(name, way):
  try: way()
  except (OSError, ValueError, LookupError, ImportError): return
  done.append(str(name))
def f():
  global done
BODY
  return done
"""


def test_every_way_out_is_closed(box, tmp_path):
  tmp_path.chmod(0o777)
  old = tmp_path / "old"
  old.write_text("kept")
  old.chmod(0o666)
  with socket.create_server(("127.0.0.1", 0)) as server:
    server.setblocking(False)
    words = {"OUTSIDE": str(tmp_path), "PARENT": str(os.getpid()),
             "PORT": str(server.getsockname()[1])}
    programs = []
    for way in WAYS.values():
      program = WAY.replace("BODY", "\n".join("  " + line for line in way.splitlines()))
      for word, value in words.items():
        program = program.replace(word, value)
      programs.append(program)
    found = verdicts(box, programs, "done = f()\nassert done == [], done")
    with pytest.raises(BlockingIOError):
      server.accept()
  for name, verdict in zip(WAYS, found, strict=True):
    assert verdict.status == "right", (name, verdict)
  assert [path.name for path in tmp_path.iterdir()] == ["old"] and old.read_text() == "kept"


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


SHELL = Command(("sh", "{file}"), (Case("twice 3", "6"), Case("twice 21", "42\n"),
                                   Case("read x; twice $x", "10", stdin="5\n")),
                suffix=".sh", languages=("sh", "bash"))


def test_commands_are_compared_by_what_they_print(box):
  small = with_limits(box, seconds=30.0, output=1000)
  programs = {
      "```sh\ntwice() { echo $(( 2 * $1 )); }\n```": (1, 3, "3 of 3 cases"),
      "twice() { echo 42; }": (0, 1, "case 1: another output"),
      "twice() { echo 6; exit 1; }": (0, 1, "case 2"),           # the exit code says nothing
      "exit 0": (0, 0, "case 1"), "echo 6 >&2; exit 0": (0, 0, "case 1"),
      "twice() { while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaa; done; }": (0, 0, "over 1000 bytes"),
      "twice() { read y < /etc/passwd && echo 6; }": (0, 0, "case 1"),
      "twice() { echo > /tmp/entrolab-escape && echo 6; }": (0, 0, "case 1"),
      ":(){ : | : & }; :": (0, 0, "case 1"), "kill -9 -1; kill -9 $PPID": (0, 0, "case 1"),
      "": (0, 0, "no program")}
  found = code.verify(list(programs), [SHELL] * len(programs), sandbox=small)
  for text, (verdict, score) in zip(programs, found, strict=True):
    status, passed, why = programs[text]
    assert (verdict.code, score) == (status, Score(passed, 3)) and why in verdict.why, (text,
                                                                                        verdict)


def test_an_empty_string_may_be_printed_as_quotes(box):
  task = Command(("sh", "{file}"), (Case("echo '\"\"'", ""), Case("", '""'), Case("echo 0", "")),
                 environment={"ROW": "7"})
  (_, score), = code.verify(["x=1"], [task], sandbox=box)
  assert score == Score(2, 3)
  row = Command(("sh", "{file}"), (Case("echo $ROW $HOME", "7 /scratch" if box.kind == "bwrap"
                                        else "7 /"),), environment={"ROW": "7"})
  assert codes([code.verify(["x=1"], [row], sandbox=box)[0][0]]) == [1]


def test_an_interpreter_that_cannot_run_stops_the_run(box, tmp_path):
  script = tmp_path / "q"
  script.write_text("#!/nowhere/q\n")
  script.chmod(0o755)
  with pytest.raises(SandboxError, match=f"{box.kind}: .*cannot run .*/q: "):
    code.verify(["x"], [Command((str(script), "{file}"), (Case("", ""),))], sandbox=box)


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
  seen: dict[int, str] = {}
  done = threading.Event()

  def watch():
    while not done.is_set():
      seen.update(descendants(os.getpid()))
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


def decide(program: bytes, arch: int, number: int, *args: int) -> int:
  """What the kernel would return for a call: an interpreter of the filter's five instructions."""
  data = struct.pack("<iIQ6Q", number, arch, 0, *(list(args) + [0] * 6)[:6])
  lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
  at = loaded = 0
  while True:
    what, yes, no, value = lines[at]
    at += 1
    if what == 0x20:
      loaded, = struct.unpack_from("<I", data, value)
    elif what == 0x54:
      loaded &= value
    elif what == 0x06:
      return value
    else:
      at += yes if (loaded == value if what == 0x15 else loaded > value) else no


PASS, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize("machine, arch, column", [("x86_64", 0xC000003E, 0),
                                                   ("aarch64", 0xC00000B7, 1)])
def test_the_filter_on_both_machines(machine, arch, column):
  strict = seccomp.program(machine, fork=False, threads=True, execute=False, alone=True)
  loose = seccomp.program(machine, fork=True, threads=True, execute=True, alone=False)
  call = lambda *numbers: numbers[column]
  table = [  # call, arguments, in the strict filter, in the loose one
      (call(0, 63), (), PASS, PASS), (call(9, 222), (), PASS, PASS),           # read, mmap
      (call(41, 198), (2, 1), EPERM, EPERM), (call(101, 117), (16,), EPERM, EPERM),
      (call(59, 221), (), EPERM, PASS), (call(62, 129), (1, 9), EPERM, PASS),
      (call(56, 220), (0x3D0F00,), PASS, PASS), (call(56, 220), (17,), EPERM, PASS),
      (call(56, 220), (0x10000011,), EPERM, EPERM),                            # a user namespace
      (435, (), ENOSYS, ENOSYS), (437, (), ENOSYS, ENOSYS), (425, (), EPERM, EPERM),
      (467, (), ENOSYS, ENOSYS), (0x40000000 + 41, (2, 1), ENOSYS, ENOSYS),    # newer, x32
      (call(157, 167), (1, 0), EPERM, EPERM), (call(157, 167), (15, 0), PASS, PASS),
      (call(302, 261), (0, 7), PASS, PASS), (call(302, 261), (4321, 7), EPERM, PASS),
      (call(257, 56), (0, 0, os.O_TRUNC), EPERM, PASS),
      (call(257, 56), (0, 0, os.O_WRONLY | os.O_TRUNC), PASS, PASS),
      (call(72, 25), (3, 8, 4321), EPERM, EPERM), (call(72, 25), (3, 1), PASS, PASS)]
  for number, args, tight, wide in table:
    assert decide(strict, arch, number, *args) == tight, (number, args)
    assert decide(loose, arch, number, *args) == wide, (number, args)
  assert decide(strict, 0x40000003, 0) == KILL                                 # 32 bits
  assert decide(seccomp.program(machine, fork=False, threads=False, execute=True, alone=True),
                arch, call(56, 220), 0x3D0F00) == EPERM
  with pytest.raises(OSError, match="knows x86_64, aarch64, arm64, not riscv64"):
    seccomp.program("riscv64", fork=False, threads=False, execute=False, alone=True)


def test_values_survive_the_crossing():
  deep: list = []
  for _ in range(5000):
    deep = [deep]
  with pytest.raises(RecursionError):
    inside.plain(deep)
  with pytest.raises(TypeError, match="function is no plain data"):
    inside.plain({"a": [len, lambda: 0][1]})
  value = {"x": [(1, 2.5), {3}, b"\x00", 1 << 70, None]}
  assert inside.rebuilt(json.loads(json.dumps(inside.plain(value)))) == value


def rows(name: str) -> list[dict]:
  folder = os.environ.get("ENTROLAB_DATA")
  path = pathlib.Path(folder or "") / name
  if not folder or not path.exists():
    pytest.skip(f"needs {name} in the folder that ENTROLAB_DATA names")
  return [json.loads(line) for line in path.read_text().splitlines()]


def humaneval(row: dict) -> Functions:
  return Functions((row["entry_point"],), (f"{row['test']}\ncheck({row['entry_point']})",),
                   row["prompt"])


def test_reference_solutions_are_right_and_empty_ones_wrong(box):
  some = rows("humaneval.jsonl")[::20]
  texts = [row["prompt"] + row["answer"] for row in some] + [row["prompt"] for row in some]
  found = code.verify(texts, [humaneval(row) for row in some] * 2, sandbox=box)
  assert codes(v for v, _ in found) == [1] * len(some) + [0] * len(some), found


OBJECTS = {                       # MBPP rows whose tests need more than plain data
    "mbpp-367": "unknown", "mbpp-927": "unknown",    # setup builds a class of the program's
    "mbpp-601": "wrong",                             # tests make objects of such a class
    "mbpp-533": "unknown",                           # an argument is a type
    "mbpp-596": "unknown"}                           # a module that only the program imports


def mbpp(row: dict) -> Functions:
  called = {node.func.id for test in row["tests"] for node in ast.walk(ast.parse(test))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
  return Functions(tuple(sorted(called - vars(builtins).keys() or called)), tuple(row["tests"]),
                   row["setup"])


@pytest.mark.slow
def test_all_reference_solutions(box):
  several, some = rows("humaneval.jsonl"), rows("mbpp.jsonl")
  texts = [row["prompt"] + row["answer"] for row in several] + [row["answer"] for row in some]
  tasks = [*map(humaneval, several), *map(mbpp, some)]
  patient = with_limits(box, seconds=60.0, batch_seconds=3600.0)
  found = code.verify(texts, tasks, sandbox=patient)
  other = {row["id"]: v.status for row, (v, _) in zip(several + some, found, strict=True)
           if v.status != "right"}
  assert other == OBJECTS
