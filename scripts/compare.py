"""Runs side by side: one row a method, mean over seeds and the half-width of its 95 % interval.

  python scripts/compare.py RUN [RUN ...] [--write README.md] [--html]

The interval is Student's over seeds; a single seed has none. Before is the mean over all runs,
whose first evaluation is of one policy on the same problems, with the keys of each seed.
"""

import argparse
import collections
import json
import math
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entrolab.trainer import report  # noqa: E402

BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
COLUMNS = {"entropy": "eval/entropy", "pass@1": "eval/pass@1", "pass@16": "eval/pass@16",
           "distinct right of 16": "eval/distinct", "greedy": "eval/greedy"}
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def cell(values: list[float]) -> str:
  """'0.215 (±0.012)', or the mean alone for one run."""
  mean, count = float(np.mean(values)), len(values)
  if count == 1:
    return f"{mean:.3f}"
  half = T95[count - 1] * float(np.std(values, ddof=1)) / math.sqrt(count)
  return f"{mean:.3f} (±{half:.3f})"


def table(runs: list[report.Run]) -> str:
  """Markdown. Raises ValueError for a run without its last evaluation, or more than ten seeds."""
  groups: dict[str, list[report.Run]] = collections.defaultdict(list)
  for run in runs:
    if len(run.evals) < 2:
      raise ValueError(f"{run.folder}: has not finished; run it to its end first")
    groups[run.config["name"]].append(run)
  if max(map(len, groups.values())) > 10:
    raise ValueError("at most ten seeds a method")
  reward = lambda run: float(np.mean(run.series("reward/accuracy")[1][-10:]))
  head = ["method", "seeds", *COLUMNS, "training reward, last 10 steps"]
  rows = [["before", "", *(cell([float(np.mean([r.evals[0][m] for r in runs]))]) for m in
                           COLUMNS.values()), ""]]
  for name, members in groups.items():
    rows.append([f"`{name}`", str(len(members)),
                 *(cell([r.evals[-1][m] for r in members]) for m in COLUMNS.values()),
                 cell([reward(r) for r in members])])
  lines = [head, ["---"] * len(head), *rows]
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
  """Prints the table, writes it between README's markers, draws the page."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("run", nargs="+", type=pathlib.Path)
  parser.add_argument("--write", type=pathlib.Path, metavar="README")
  parser.add_argument("--html", action="store_true", help="also compare.html beside the first run")
  parser.add_argument("--json", action="store_true", help="also one JSON line a run")
  args = parser.parse_args()
  try:
    text = table([report.Run(folder) for folder in args.run])
  except (FileNotFoundError, ValueError) as error:
    sys.exit(str(error))
  print(text, end="")
  if args.json:
    for folder in args.run:
      run = report.Run(folder)
      print(json.dumps({"run": folder.name, **{m: run.evals[-1][m] for m in COLUMNS.values()}}))
  if args.write:
    before, _, rest = args.write.read_text().partition(BEGIN)
    args.write.write_text(before + BEGIN + text + END + rest.partition(END)[2])
  if args.html:
    print(report.write(*args.run))


if __name__ == "__main__":
  main()
