"""Measures how cost grows: slopes of times and temporaries, and collectives beside theory.

  python scripts/bench_scaling.py [--rounds 5] [--only head-tokens update-micro collectives ...]
                                  [--preset rl|tiny] [--recipe grpo] [--one_thread]

Every series is a process; in a round it visits all its sizes in turn, so that noise hits all alike.
Slopes are least squares on log-log scales: of the medians over rounds, least and most of single
rounds, and between the two largest sizes alone. `temp` is the compiler's figure, in MB, and exact.
Collectives are read from the programs that XLA compiles for 1, 2, 4 and 8 forced CPU devices, each
count in a separate process, beside what a ring would send in theory. Prints tables, then one
JSON line.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import bench  # noqa: E402

DEVICES = (1, 2, 4, 8)
PASSES = "forward + backward"


@dataclasses.dataclass(frozen=True)
class Series:
  """A case at several sizes."""
  title: str  # of the table
  case: str  # of bench_scaling_cases
  points: dict[int, dict[str, Any]]  # size -> arguments of the case
  ideal: dict[str, str]  # what takes time -> its slope in theory
  temp: str  # the slope of temporaries in theory


def series(preset: str, recipe: str) -> dict[str, Series]:
  """What is measured, by name. Updates: a quarter of the length is prompt."""
  head = lambda n, v: dict(shape=(n, 256, v), kind="fused", backward=True)
  update = lambda samples=8, length=64, micro=1: dict(
      preset=preset, recipe=recipe, prompts=4, samples=samples, length=length, micro=micro)
  decode = lambda batch, prompt, samples: dict(preset=preset, batch=batch, prompt=prompt, new=33,
                                               samples=samples)
  grow = lambda make, *sizes: {size: make(size) for size in sizes}
  both = lambda ideal: {"step": ideal, "forward": ideal}
  subject = f"{recipe} on {preset}"
  return {
      "head-tokens": Series(
          "fused head, D 256, V 16384, against N", "head",
          grow(lambda n: head(n, 16384), 256, 512, 1024, 2048, 4096), {PASSES: "1"}, "0 to 1"),
      "head-vocabulary": Series(
          "fused head, N 1024, D 256, against V", "head",
          grow(lambda v: head(1024, v), 4096, 8192, 16384, 32768, 65536), {PASSES: "1"}, "0"),
      "update-group": Series(
          f"update of {subject}, 4 prompts, length 64, against G", "update",
          grow(lambda g: update(samples=g), 4, 8, 16, 32), both("1"), "1"),
      "update-length": Series(
          f"update of {subject}, 16 rows, against length", "update",
          grow(lambda n: update(samples=4, length=n), 32, 64, 128, 256), both("1 to 2"), "1 to 2"),
      "update-micro": Series(
          f"update of {subject}, 64 rows, length 64, against micro-batches", "update",
          grow(lambda m: update(samples=16, micro=m), 1, 2, 4, 16), both("0"), "-1"),
      "decode-batch": Series(
          f"decode step of {preset}, 16 + 33 slots, against batch", "decode",
          grow(lambda b: decode(b, 16, 1), 1, 8, 32, 128),
          {"step": "0 to 1", "prefill": "1"}, "1"),
      "decode-cache": Series(
          f"decode step of {preset}, 32 rows of one prompt, against its length", "decode",
          grow(lambda n: decode(32, n, 32), 128, 256, 512, 1024),
          {"step": "0 to 1", "prefill": "1 to 2"}, "1")}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
  """Exponent k of values ~ sizes^k by least squares of logarithms; nan where a value is not
  positive. Raises ValueError for fewer than two different sizes, or one not above 0."""
  if len(sizes) != len(values) or len(set(sizes)) < 2 or min(sizes) <= 0:
    raise ValueError(f"{len(values)} values at sizes {sizes}: two different sizes above 0 at least")
  if min(values) <= 0:
    return math.nan
  return statistics.linear_regression(list(map(math.log, sizes)),
                                      list(map(math.log, values))).slope


def theory(program: dict) -> dict[str, tuple[int, float]]:
  """{kind: (runs, bytes a device sends by rings)} of one head or update, however many its parts.

  data sums the gradient; fsdp gathers the parameters for the forward and for the backward pass and
  scatters their gradient; tensor sums the states of all tokens four times a layer, where they are
  looked up, and once more the gradient that the head gives them: of a head that alone.
  """
  n = program["devices"]
  weights, states = ((n - 1) / n * program[name] for name in ("weights", "states"))
  sums = 1 if program["program"] == "head" else 4 * program["layers"] + 2
  return {"data": {"all-reduce": (1, 2 * weights)},
          "fsdp": {"all-gather": (2, 2 * weights), "reduce-scatter": (1, weights)},
          "tensor": {"all-reduce": (sums, 2 * sums * states)}}[program["axis"]]


def by_kind(program: dict) -> list[list]:
  """Rows of the table: runs, MB that a device puts in and sends, what theory says; then sums.

  Groups of one device, which send nothing, are left out.
  """
  ideal, rows = theory(program), []
  found = [c for c in program["found"] if len(c["group"]) > 1]
  for kind in dict.fromkeys([*ideal, *(c["kind"] for c in found)]):
    of_kind, (runs, sent) = [c for c in found if c["kind"] == kind], ideal.get(kind, (0, 0))
    rows.append([kind, sum(c["times"] for c in of_kind),
                 sum(c["times"] * c["bytes"] for c in of_kind) / 1e6,
                 sum(c["wire"] for c in of_kind) / 1e6,
                 runs, sent / 1e6])
  total = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
  beyond = total[2] / total[4] if total[4] else None
  name = [program["program"], f"{program['axis']} {program['devices']}"]
  return [[*name, *row, None] for row in rows] + [[*name, "all", *total, beyond]]


def table(one: Series, found: dict) -> list[dict]:
  """Prints a series; a row for the times and for the temporaries of everything it does."""
  sizes, rows = list(one.points), []
  for what, ideal in one.ideal.items():
    rounds = [[run["points"][str(size)][what] for size in sizes] for run in found["runs"]]
    middle = [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]
    each = [slope(sizes, seconds) for seconds in rounds]
    rows.append({"what": f"{what}, ms", "values": middle, "least": min(each), "most": max(each),
                 "ideal": ideal, "rounds": rounds})
  for what in found["temp_mb"][str(sizes[0])]:
    rows.append({"what": f"{what}, temp MB", "ideal": one.temp, "least": None, "most": None,
                 "values": [found["temp_mb"][str(size)][what] for size in sizes]})
  for row in rows:
    row |= {"sizes": sizes, "slope": slope(sizes, row["values"]),
            "last": slope(sizes[-2:], row["values"][-2:])}
  ends = ["slope", "least", "most", "last", "ideal"]
  bench.show(["", *map(str, sizes), *ends],
             [[row["what"], *row["values"], *(row[end] for end in ends)] for row in rows])
  return rows


def main() -> None:
  """Measures the series in the same rounds, compiles for the meshes, prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  names = [*series("rl", "grpo"), "collectives"]
  parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names,
                      help=", ".join(names))
  parser.add_argument("--preset", choices=("rl", "tiny"), default="rl", help="of update and decode")
  parser.add_argument("--recipe", default="grpo", help="of updates")
  parser.add_argument("--one_thread", action="store_true", help="processor time of one thread")
  args = parser.parse_args()
  if args.rounds < 1:
    parser.error(f"--rounds={args.rounds}: at least 1")
  wanted = {name: one for name, one in series(args.preset, args.recipe).items()
            if name in args.only}
  job = lambda what, **args_: dict(cases="bench_scaling_cases", case=what, args=args_, peer="",
                                 one_thread=args.one_thread)
  begin, result = time.time(), {**vars(args), "machine": bench.machine(), "series": {}}
  jobs = {name: (job("sweep", case=one.case, points=one.points), sys.executable)
          for name, one in wanted.items()}
  found = bench.measure(jobs, args.rounds, 1) if jobs else {}
  for name, row in found.items():
    load = [run["load"] for run in row["runs"]]
    print(f"\n{name}: {wanted[name].title}; {args.rounds} rounds, load {min(load):.1f} to "
          f"{max(load):.1f}\n")
    result["series"][name] = {"rows": table(wanted[name], row), "load": [min(load), max(load)]}
  if "collectives" in args.only:
    result["collectives"] = []
    for count in DEVICES:
      described = job("collectives", recipe=args.recipe) | {"devices": count}
      worker = bench.Worker(f"{count} devices", described, sys.executable)
      worker.close()
      result["collectives"] += worker.facts["programs"]
      print(f"  {count} devices: compiled after {worker.facts['setup_s']:.1f} s", file=sys.stderr,
            flush=True)
    print("\ncollectives of a device: a head of 2048 x 256 x 16384, an update of 32 x 64 tokens\n")
    bench.show(["program", "mesh", "kind", "runs", "MB put in", "MB sent", "runs in theory",
                "MB sent in theory", "times theory"],
               [row for program in result["collectives"] for row in by_kind(program)])
  print(json.dumps({**result, "seconds": time.time() - begin, "load_after": os.getloadavg()[0]}))


if __name__ == "__main__":
  main()
