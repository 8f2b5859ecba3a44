"""Kills a training run at random moments, resumes it, and compares everything with one that ran on.

  python scripts/kill_drill.py [--kills 20] [--chain 5] [--seed 0] [--write docs/drills.md]

Moments are spread over sampling, verifying, the step and saving, at a random fraction of each, and
drawn from the seed. A chain of kills hits one run directory; then the run goes on to its end.
Compared bit for bit: every leaf of the last checkpoint (parameters, optimiser, controllers), data
position, tokens, changes, metrics.jsonl without times, samples. Prints a table and one JSON line;
exit code 1 when anything differs.
"""

import argparse
import contextlib
import dataclasses
import json
import mmap
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entrolab.trainer.log import WALL  # noqa: E402

PHASES = ("start", "sampling", "verifying", "step", "save")
AIMS = PHASES[1:]
BEGIN, END = "<!-- kill drill -->\n", "<!-- /kill drill -->"
UNFINISHED = ".orbax-checkpoint-tmp"
STEPS = 12
SETTINGS = ("sampling.prompts=4", "sampling.samples=8", "training.updates=2",
            f"training.steps={STEPS}", "evaluation.problems=4", "evaluation.every=5",
            "saving.keep=3")
LIMIT_S = 900


@dataclasses.dataclass(frozen=True)
class Aim:
  """When to kill: at this fraction of a phase, `ahead` steps after the run has started again."""
  phase: str  # one of AIMS
  ahead: int  # steps after the start
  fraction: float  # of the phase, 0 to 1
  every: int  # steps between checkpoints


def aims(kills: int, seed: int) -> list[Aim]:
  """Phases in turn, the rest at random."""
  chance = random.Random(seed)
  return [Aim(AIMS[i % len(AIMS)], chance.randint(1, 2), chance.random(), chance.choice([1, 2]))
          for i in range(kills)]


class Note:
  """Phase and step of a run, in a file that outlives a kill, and in a pipe to the parent."""

  def __init__(self, path: pathlib.Path, pipe: int | None = None):
    if not path.exists():
      path.write_bytes(bytes(2))
    with open(path, "r+b") as file:
      self.bytes = mmap.mmap(file.fileno(), 2)
    self.pipe = pipe

  def enter(self, phase: str, step: int | None = None) -> None:
    """Writes both to the file, then to the pipe."""
    self.bytes[0] = PHASES.index(phase)
    if step is not None:
      self.bytes[1] = step
    if self.pipe is not None:
      os.write(self.pipe, bytes(self.bytes[:2]))

  def read(self) -> tuple[str, int]:
    """(phase, step)"""
    return PHASES[self.bytes[0]], self.bytes[1]


def child(note: Note, folder: str, every: int, die: tuple[int, float] | None) -> None:
  """Runs the experiment as the command line does, and notes where it is. die: step and fraction of
  the texts after which it kills itself in verifying, which is too short to be hit from outside."""
  from absl import app

  from entrolab import main
  from entrolab.tasks.countdown import Countdown
  from entrolab.trainer import checkpoint, loop
  from entrolab.trainer import step as step_module
  draw_and_verify, verify = step_module.draw_and_verify, Countdown.verify
  step_of, save = loop.train_step, checkpoint.Checkpoints.save

  def train_step(lab, state, step, *rest):
    note.enter("step", step)
    return step_of(lab, state, step, *rest)

  def sampling(*args):
    note.enter("sampling")
    rows = draw_and_verify(*args)
    note.enter("step")
    return rows

  def verifying(self, texts, examples):
    phase, step = note.read()
    if phase != "sampling":  # an evaluation
      return verify(self, texts, examples)
    note.enter("verifying")
    if die and die[0] == step:
      some = int(die[1] * len(texts))
      verify(self, texts[:some], examples[:some])
      os.kill(os.getpid(), signal.SIGKILL)
    return verify(self, texts, examples)

  def saving(*args):
    note.enter("save")
    save(*args)

  for place, name, noting in (
      (step_module, "draw_and_verify", sampling), (Countdown, "verify", verifying),
      (loop, "train_step", train_step), (checkpoint.Checkpoints, "save", saving)):
    setattr(place, name, noting)
  flags = [f"--set={text}" for text in (*SETTINGS, f"saving.every={every}")]
  app.run(main.main, ["kill_drill", "--config=experiments/siren.py", *flags,
                      f"--workdir={folder}"])


@dataclasses.dataclass
class Drill:
  """A folder of runs, and the compiled programs that they share."""
  home: pathlib.Path  # the folder
  # median seconds of each phase, in a run that is not killed
  lengths: dict[str, float] = dataclasses.field(default_factory=dict)

  def start(self, run: pathlib.Path, every: int, die: tuple[int, float] | None = None
            ) -> tuple[subprocess.Popen, int, Note]:
    """(process, reading end of its pipe, note)"""
    reading, writing = os.pipe()
    note = run.with_suffix(".note")
    note.write_bytes(bytes(2))
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(self.home / "compiled")}
    with open(run.with_suffix(".out"), "a") as out:
      process = subprocess.Popen(
          [sys.executable, __file__, "--child", str(note), str(writing), str(run), str(every),
           json.dumps(die)], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT,
          pass_fds=[writing])
    os.close(writing)
    return process, reading, Note(note)

  def finish(self, run: pathlib.Path, every: int = 1) -> None:
    """Runs to the end; learns how long phases are. Raises RuntimeError with its output."""
    process, reading, _ = self.start(run, every)
    seen: dict[str, list[float]] = {phase: [] for phase in PHASES}
    last, begin = "start", time.perf_counter()
    while data := os.read(reading, 2):
      now = time.perf_counter()
      seen[last].append(now - begin)
      last, begin = PHASES[data[0]], now
    os.close(reading)
    if process.wait(LIMIT_S):
      raise RuntimeError(run.with_suffix(".out").read_text())
    if not self.lengths:
      self.lengths = {phase: statistics.median(times[-5:]) for phase, times in seen.items()
                      if times}

  def kill(self, run: pathlib.Path, aim: Aim) -> dict[str, Any]:
    """Starts or resumes a run and kills it as aimed; what was found then."""
    at = min(newest(run) + aim.ahead, STEPS - 1)
    inside = (at, aim.fraction) if aim.phase == "verifying" else None
    process, reading, note = self.start(run, aim.every, inside)
    end = time.monotonic() + LIMIT_S
    while data := os.read(reading, 2):
      phase, step = PHASES[data[0]], data[1]
      if inside is None and (step > at or (step == at and phase == aim.phase)):
        time.sleep(aim.fraction * self.lengths[aim.phase])
        break
      if time.monotonic() > end:
        raise TimeoutError(f"{run}: step {at} was not reached in {LIMIT_S} s")
    if inside is None:
      process.kill()
    process.wait(LIMIT_S)
    os.close(reading)
    if process.returncode != -signal.SIGKILL:
      raise RuntimeError(f"{run} ended by itself with {process.returncode}:\n"
                         + run.with_suffix(".out").read_text())
    phase, step = note.read()
    unfinished = [p.name for p in (run / "checkpoints").glob(f"*{UNFINISHED}*")]
    metrics = run / "metrics.jsonl"
    text = metrics.read_bytes() if metrics.exists() else b""
    return {"aimed": aim.phase, "killed in": phase, "step": step + 1,
            "saves unfinished": len(unfinished),
            "metrics past the checkpoint": max(0, text.count(b"\n") - 1 - newest(run)),
            "resumes after step": newest(run)}


def newest(run: pathlib.Path) -> int:
  """Step of the newest checkpoint that was renamed to its place, 0 without."""
  return max((int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def contents(run: pathlib.Path) -> dict[str, Any]:
  """Everything that must not depend on kills, by name."""
  import orbax.checkpoint as ocp
  with ocp.CheckpointManager((run / "checkpoints").resolve()) as manager:
    got = manager.restore(manager.latest_step(), args=ocp.args.Composite(
        state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()))
  state, meta = got["state"], got["meta"]
  found = {f"state {name}": (str(x.dtype), x.shape, bytes(memoryview(x).cast("B")))
           for name, x in ((name, _array(x)) for name, x in state.items())}
  progress = {k: v for k, v in meta["progress"].items() if k != "seconds"}
  found |= {"data position": meta["data"], "progress": progress, "leaves": meta["leaves"],
            "mathematics": meta["mathematics"]}
  for number, line in enumerate((run / "metrics.jsonl").read_text().splitlines()):
    row = json.loads(line)
    found[f"metrics row {number}"] = {k: v for k, v in row.items() if not k.startswith(WALL)}
  for path in sorted((run / "samples").iterdir()):
    found[f"samples {path.name}"] = path.read_bytes()
  return found


def _array(x: Any) -> Any:
  import numpy as np
  return np.ascontiguousarray(x)


def drill(home: pathlib.Path, kills: int, chain: int, seed: int
          ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """(one row a kill, summary)."""
  begin, lab = time.monotonic(), Drill(home)
  lab.finish(home / "whole")  # and fills the compile cache
  want, rows = contents(home / "whole"), []
  todo = aims(kills, seed)
  for number, at in enumerate(range(0, kills, chain)):
    run, these = home / f"run{number}", []
    for aim in todo[at:at + chain]:
      these.append({"kill": len(rows) + len(these) + 1, **lab.kill(run, aim)})
      print(f"killed {these[-1]}", file=sys.stderr, flush=True)
    lab.finish(run)
    got = contents(run)
    differ = sorted(name for name in {*got, *want} if got.get(name) != want.get(name))
    rows += [{**row, "then": "identical" if not differ else f"differs: {differ[:3]}"}
             for row in these]
  leaves = [name for name in want if name.startswith("state ")]
  phases = [row["killed in"] for row in rows]
  summary = {"drill": "kill", "kills": kills, "seed": seed,
             "identical": all(row["then"] == "identical" for row in rows),
             "killed in": {p: phases.count(p) for p in PHASES if p in phases},
             "saves unfinished": sum(row["saves unfinished"] > 0 for row in rows),
             "leaves": len(leaves), "bytes": sum(len(want[name][2]) for name in leaves),
             "metrics rows": sum(name.startswith("metrics row") for name in want),
             "seconds": round(time.monotonic() - begin)}
  return rows, summary


def table(rows: list[dict[str, Any]]) -> str:
  """Markdown."""
  lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
  """Drills, prints, writes the table between the markers of a page."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--chain", type=int, default=5, help="kills of one run")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path,
                      help="where runs stay; default: a temporary one")
  parser.add_argument("--write", type=pathlib.Path, metavar="PAGE")
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    home = args.folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    home.mkdir(parents=True, exist_ok=True)
    rows, summary = drill(home.resolve(), args.kills, args.chain, args.seed)
  text = table(rows) + "\n```\n" + json.dumps(summary) + "\n```\n"
  print(table(rows) + json.dumps(summary))
  if args.write:
    before, _, rest = args.write.read_text().partition(BEGIN)
    args.write.write_text(before + BEGIN + text + END + rest.partition(END)[2])
  sys.exit(0 if summary["identical"] else 1)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--child"]:
    place, pipe, run_folder, often, death = sys.argv[2:]
    child(Note(pathlib.Path(place), int(pipe)), run_folder, int(often),
          tuple(json.loads(death)) if death != "null" else None)
  else:
    main()
