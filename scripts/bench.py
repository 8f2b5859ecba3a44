"""Measures the head, the sampler, a training step or the loop beside bounds and peers.

  python scripts/bench.py head|sample|step|loop [--preset tiny|smollm2|rl] [--shape small|big|NxDxV]
                          [--batch 1 8 32 64] [--rounds 5] [--peer NAME[=PYTHON] ...]

Every variant is a separate process with separate peak memory and libraries. The processes run one
after another, round by round, each round in another order, so that a busy machine slows all of them
alike. Times are medians over rounds; a ratio is the median of
the ratios within a round. Bare matmuls of the same shape and a read of memory run in the
same rounds and give the bounds. Prints a table, then one JSON line with everything.

A peer is measured on the same work by its interpreter: `--peer transformers=ENV/bin/python`.
The names are the cases of bench_peers.py: torch, transformers, trl, verl, tunix and so on.
--one_thread counts processor time of one thread, for a machine that others use as well.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import bench_peers

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

SHAPES = {"small": (2048, 576, 49152), "big": (1024, 896, 151936)}
DEFAULT = {"head": "tiny", "sample": "tiny", "step": "rl", "loop": "tiny"}
PEERS = {what: bench_peers.names(what) for what in DEFAULT}


def memory(field: str) -> float:
  """A field of /proc/self/status in MB: VmRSS now, VmHWM since the last reset."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(f"{field}:")[1].split()[0]) / 1024


def serve(job: dict) -> None:
  """The worker: builds one variant, then runs it once for every line on standard input."""
  channel = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever the libraries print goes to standard error
  say = lambda x: print(json.dumps(x), file=channel, flush=True)
  clock = time.process_time if job["one_thread"] else time.perf_counter
  cases: Any = importlib.import_module(job.get("cases") or (
      "bench_peers" if job["peer"] else "bench_cases"))
  cases.clock = clock
  begin = time.perf_counter()
  run, facts = cases.CASES[job["case"]](**job["args"])
  say({**facts, "setup_s": time.perf_counter() - begin})
  reset = pathlib.Path("/proc/self/clear_refs")
  for _ in sys.stdin:
    with contextlib.suppress(OSError):  # not every kernel lets the peak be reset
      reset.write_text("5")
    before, start = memory("VmRSS"), clock()
    measured = run() or {}
    seconds = clock() - start
    say({"seconds": seconds, **measured, "peak_mb": memory("VmHWM") - before,
         "load": os.getloadavg()[0]})


class Worker:
  """One variant in a separate process, with as many forced devices as the job names, or one.

  Raises RuntimeError with its last lines when it dies.
  """

  def __init__(self, name: str, job: dict, python: str):
    self.name, self.python = name, python
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env.setdefault("JAX_PLATFORMS", "cpu")
    count, prefix = job.get("devices", 1), []
    flags = [f"--xla_force_host_platform_device_count={count}"] if count > 1 else []
    if job["one_thread"]:
      flags.append("--xla_cpu_multi_thread_eigen=false")
      env["OMP_NUM_THREADS"] = "1"
      prefix = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    if flags:
      env["XLA_FLAGS"] = " ".join(flags)
    self.process = subprocess.Popen(
        [*prefix, python, __file__, "--worker", json.dumps(job)], env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    self.facts = self.hear()

  def hear(self) -> dict:
    """The next line of the worker."""
    assert self.process.stdout and self.process.stderr
    line = self.process.stdout.readline()
    if not line:
      tail = self.process.stderr.read().strip().splitlines()[-8:]
      raise RuntimeError(f"{self.name} ({self.python}) ended:\n  " + "\n  ".join(tail))
    return json.loads(line)

  def run(self) -> dict:
    """One measurement."""
    assert self.process.stdin
    self.process.stdin.write("\n")
    self.process.stdin.flush()
    return self.hear()

  def close(self) -> None:
    """Ends the process."""
    self.process.kill()
    self.process.wait()
    for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
      if pipe:
        pipe.close()


def measure(jobs: dict[str, tuple[dict, str]], rounds: int, warm: int) -> dict[str, dict]:
  """{variant: facts, and the results of `rounds` runs}; `warm` runs before are thrown away."""
  workers, found = [], {}
  try:
    for name, (job, python) in jobs.items():
      workers.append(Worker(name, job, python))
      print(f"  {name} is ready after {workers[-1].facts['setup_s']:.1f} s", file=sys.stderr,
            flush=True)
    for number in range(warm + rounds):
      first = number % len(workers)  # who follows whom differs from round to round
      for worker in workers[first:] + workers[:first]:
        row = worker.run()
        facts = found.setdefault(worker.name, {**worker.facts, "runs": []})
        if number >= warm:
          facts["runs"].append(row)
      print(f"  round {number + 1} of {warm + rounds} is done", file=sys.stderr, flush=True)
  finally:
    for worker in workers:
      worker.close()
  return found


def middle(row: dict, field: str = "seconds") -> float:
  """Median over rounds."""
  return statistics.median(run[field] for run in row["runs"])


def ratio(found: dict[str, dict], name: str, bound: str, field: str = "seconds") -> float:
  """Median over rounds of the ratio of two variants within a round."""
  pairs = zip(found[name]["runs"], found[bound]["runs"], strict=True)
  return statistics.median(a[field] / b[field] for a, b in pairs)


def show(head: list[str], rows: list[list]) -> None:
  """A Markdown table."""
  cell = lambda x: x if isinstance(x, str) else "" if x is None else f"{x:.3g}"
  for line in (head, ["---"] * len(head), *rows):
    print("| " + " | ".join(map(cell, line)) + " |")


def table(found: dict[str, dict]) -> list[dict]:
  """A row a variant: median, multiples of bounds and of other variants, memory, compile time."""
  rows = []
  for name, row in found.items():
    bounds = {f"x {label}": ratio(found, name, other) / times for label, (other, times)
              in row.get("bounds", {}).items() if other in found}
    beside = [f"{ratio(found, name, other):.3g} x {other}" for other in row.get("beside", ())
              if other in found]
    phases = {f"{k} ms": 1e3 * middle(row, k) for k in row["runs"][0]
              if k not in ("seconds", "peak_mb", "load")}
    rows.append({"variant": name, "ms": 1e3 * middle(row), **bounds, **phases,
                 "temp MB": row.get("temp_mb"), "peak MB": middle(row, "peak_mb"),
                 "compile s": row.get("compile_s"), **row.get("rates", {}),
                 "beside": ", ".join(beside)})
    for label, amount in row.get("per_second", {}).items():
      rows[-1][label] = amount / middle(row)
  head = list(dict.fromkeys(k for r in rows for k, x in r.items() if x not in (None, "")))
  show(head, [[r.get(k) for k in head] for r in rows])
  return rows


def machine() -> dict:
  """What the figures depend on."""
  model = [line.split(":")[1].strip() for line in
           pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
  return {"cpu": model[0] if model else platform.processor(), "cores": os.cpu_count(),
          "python": platform.python_version()}


def shape_of(text: str) -> tuple[int, int, int]:
  """'small', 'big' or tokens x width x vocabulary."""
  if text in SHAPES:
    return SHAPES[text]
  sizes = text.split("x")
  if len(sizes) != 3 or not all(s.isdigit() for s in sizes):
    raise argparse.ArgumentTypeError(f"{text!r}: choices: {', '.join(SHAPES)}, or NxDxV")
  return int(sizes[0]), int(sizes[1]), int(sizes[2])


def plan(args: argparse.Namespace) -> dict[str, dict[str, tuple[dict, str]]]:
  """{title: {variant: (job, interpreter)}}; variants of one title run in the same rounds."""
  import bench_cases
  titles: dict[str, dict[str, tuple[dict, str]]] = {}
  for title, variants in bench_cases.plan(args).items():
    titles[title] = {}
    for name, (case, arguments) in variants.items():
      job = dict(case=case, args=arguments, peer="", one_thread=args.one_thread)
      titles[title][name] = (job, sys.executable)
    for peer in args.peer:
      label, _, python = peer.partition("=")
      work = bench_cases.shared(args, title)
      job = dict(case=f"{args.what}.{label}", args=work, peer=label, one_thread=args.one_thread)
      titles[title][label] = (job, python or sys.executable)
  return titles


def main() -> None:
  """Runs, prints the tables and the JSON line."""
  if sys.argv[1:2] == ["--worker"]:
    return serve(json.loads(sys.argv[2]))
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0],
                                   epilog="peers: " + json.dumps(PEERS))
  parser.add_argument("what", choices=sorted(PEERS))
  parser.add_argument("--preset", choices=("tiny", "smollm2", "rl"))
  parser.add_argument("--shape", type=shape_of, nargs="+", default=list(SHAPES.values()))
  parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
  parser.add_argument("--recipe", nargs="+", default=["dapo", "siren"], help="of step and loop")
  parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--warm", type=int, default=1, help="runs that are thrown away")
  parser.add_argument("--steps", type=int, default=8, help="of loop")
  parser.add_argument("--peer", nargs="+", default=[], metavar="NAME[=PYTHON]")
  parser.add_argument("--one_thread", action="store_true")
  args = parser.parse_args()
  args.preset = args.preset or DEFAULT[args.what]
  for peer in args.peer:
    if peer.partition("=")[0] not in PEERS[args.what]:
      sys.exit(f"--peer {peer}: {args.what} has {', '.join(PEERS[args.what]) or 'none'}")
  result = {"what": args.what, "machine": machine(), "load_before": os.getloadavg()[0],
            "tables": {}}
  for title, jobs in plan(args).items():
    if args.only:
      jobs = {name: job for name, job in jobs.items() if name in args.only}
    found = measure(jobs, args.rounds, args.warm)
    loads = [run["load"] for row in found.values() for run in row["runs"]]
    print(f"\n{args.what}: {title}; {args.rounds} rounds, load {min(loads):.1f} to "
          f"{max(loads):.1f}")
    result["tables"][title] = {"rows": table(found), "load": [min(loads), max(loads)],
                               "seconds": {name: [run["seconds"] for run in row["runs"]]
                                           for name, row in found.items()}}
  print(json.dumps(result))


if __name__ == "__main__":
  main()
