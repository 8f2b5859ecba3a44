"""A run as one self-contained page: `python -m entrolab.trainer.report RUN [RUN ...]`.

Several runs give one page that compares them, written into the folder of the first.
"""

import argparse
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import jinja2
import matplotlib
import numpy as np

from entrolab.trainer import report_ledger
from entrolab.trainer.files import write_text
from entrolab.trainer.names import under_current_names

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
STYLE: Any = {
    "svg.hashsalt": "entrolab", "svg.fonttype": "none", "font.size": 10, "axes.grid": True,
    "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
    "grid.alpha": 0.25, "grid.linewidth": 0.6, "figure.facecolor": "none", "axes.facecolor":
    "none", "savefig.facecolor": "none", "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.titleweight": "bold", "lines.linewidth": 1.8}


class Run:
  """The files of a run directory, read once."""

  def __init__(self, folder: pathlib.Path):
    for name in ("config.json", "metrics.jsonl"):
      if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} is no run directory: {name} is missing")
    self.folder = folder
    self.config = json.loads((folder / "config.json").read_text())
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if not rows:
      raise ValueError(f"{path} has no line yet")
    rows = under_current_names(rows, path)
    self.rows = [row for row in rows if "reward/mean" in row]  # of training steps
    self.evals = [row for row in rows if "eval/pass@1" in row or "eval/greedy" in row]

  @property
  def label(self) -> str:
    """Name and seed."""
    return f"{self.config['name']} (seed {self.config.get('experiment', {}).get('seed', '?')})"

  def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a metric where it is a number."""
    rows = [row for row in self.rows if row.get(name) is not None]
    return np.asarray([row["step"] for row in rows]), np.asarray([row[name] for row in rows], float)

  def ks(self) -> list[int]:
    """The k of every pass@k that was measured."""
    names = self.evals[0] if self.evals else {}
    ends = [name.removeprefix("eval/pass@") for name in names if name.startswith("eval/pass@")]
    return sorted(int(end) for end in ends if end.isdigit())  # others are bounds of intervals

  def samples(self) -> list[dict[str, Any]]:
    """Rollouts of the first, a middle and the last logged step: some right, some wrong."""
    paths = sorted((self.folder / "samples").glob("step_*.jsonl"))
    chosen = [paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})] if paths else []
    found = []
    for path in chosen:
      rows = [json.loads(line) for line in path.read_text().splitlines()]
      right = [r for r in rows if r["verdict"] == "right"][:4]
      other = [r for r in rows if r["verdict"] != "right"][:4]
      found.append({"step": rows[0]["step"], "rows": right + other})
    return found


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Centred moving average, shorter at the ends."""
  kernel = np.ones(min(width, len(values)))
  total = np.convolve(values, kernel, "same")
  return total / np.convolve(np.ones(len(values)), kernel, "same")


def _lines(ax: Axes, runs: Sequence[Run], names: list[tuple[str, str]], title: str, unit: str
           ) -> bool:
  """One line a (run, metric), named at its end; whether there was anything to draw."""
  drawn = 0
  for run in runs:
    for metric, label in names:
      steps, values = run.series(metric)
      if len(values) == 0:
        continue
      colour = COLOURS[drawn % len(COLOURS)]
      drawn += 1
      if len(values) >= 12:  # the raw line thin, a smooth one over it
        ax.plot(steps, values, color=colour, alpha=0.22, linewidth=0.9)
        values = smooth(values, max(len(values) // 20, 3))
      ax.plot(steps, values, color=colour, marker="o" if len(values) == 1 else None,
              label=label if len(runs) == 1 else f"{run.label} {label if len(names) > 1 else ''}")
  ax.set_title(title)
  ax.set_xlabel("step")
  ax.set_ylabel(unit)
  if drawn > 1:
    ax.legend(frameon=False, fontsize=8.5, loc="best")
  return drawn > 0


def _first_names(runs: Sequence[Run], prefix: str) -> list[str]:
  """Metrics of the first steps that begin with a prefix."""
  return sorted({name for run in runs for row in run.rows[:1] for name in row
                 if name.startswith(prefix)})


def _entropy(ax: Axes, runs: Sequence[Run]) -> bool:
  names = [("entropy/exact", "exact")]
  if len(runs) == 1:
    names.append(("entropy/surprisal", "surprisal"))
    names += [(name, name.split("/")[1]) for name in _first_names(runs, "entropy/truncated")]
  return _lines(ax, runs, names, "Entropy of the policy", "nats a token")


def _reward(ax: Axes, runs: Sequence[Run]) -> bool:
  names = [("reward/accuracy", "accuracy")]
  if len(runs) == 1:
    names.append(("rollout/groups_with_signal", "groups with a learning signal"))
  done = _lines(ax, runs, names, "Accuracy in training", "share")
  ax.set_ylim(0, 1)
  return done


def _pass(ax: Axes, runs: Sequence[Run]) -> bool:
  drawn = 0
  for run in runs:
    ks = run.ks()
    ends = [run.evals[0], run.evals[-1]] if len(run.evals) > 1 else run.evals
    for row, when in zip(ends, ("before", "after"), strict=False):
      if len(runs) > 1 and when == "before" and drawn:
        continue
      y = np.asarray([row[f"eval/pass@{k}"] for k in ks])
      low = np.asarray([row[f"eval/pass@{k}_low"] for k in ks])
      high = np.asarray([row[f"eval/pass@{k}_high"] for k in ks])
      colour = COLOURS[drawn % len(COLOURS)]
      drawn += 1
      ax.errorbar(ks, y, [y - low, high - y], color=colour, marker="o", markersize=4, capsize=3,
                  label=when if len(runs) == 1 or when == "before" else f"{run.label} after")
  if drawn:
    ax.set_xscale("log", base=2)
    ax.set_xticks(runs[0].ks(), [str(k) for k in runs[0].ks()])
    ax.legend(frameon=False, fontsize=8.5, loc="lower right")
  ax.set_ylim(0, 1)
  ax.set_title("pass@k on held-out problems, 95 % intervals")
  ax.set_xlabel("k")
  return drawn > 0


def _theory(ax: Axes, runs: Sequence[Run]) -> bool:
  done = False
  for run, colour in zip(runs, COLOURS, strict=False):
    pairs = [(r["theory/covariance"], r["entropy/measured"]) for r in run.rows
             if r.get("theory/covariance") is not None and r.get("entropy/measured") is not None]
    if len(pairs) < 2:
      continue
    x, y = np.asarray(pairs).T
    fit = "no correlation: one of them does not vary"
    if x.std() > 0 and y.std() > 0:
      slope = float((x * y).sum() / (x * x).sum())
      fit = f"correlation {np.corrcoef(x, y)[0, 1]:.2f}, measured = {slope:.1f} x theory"
    ax.scatter(x, y, s=14, alpha=0.7, color=colour,
               label=f"{run.label}: {fit}" if len(runs) > 1 else fit)
    done = True
  if done:
    ax.axline((0, 0), slope=1, color="#888888", linewidth=0.9, linestyle="--")
    ax.legend(frameon=False, fontsize=8.5)
  ax.set_title("Tested: a token moves the entropy of its own state alone")
  ax.set_xlabel("change by that theory, nats (dashed: as measured)")
  ax.set_ylabel("measured, nats")
  return done


def _of_one(draw: Callable[[Axes, report_ledger.Rows], bool]
            ) -> Callable[[Axes, Sequence[Run]], bool]:
  """A picture of the steps of one run; none where several are compared."""
  return lambda ax, runs: len(runs) == 1 and draw(ax, runs[0].rows)


def _simple(metric: str, title: str, unit: str) -> Callable[[Axes, Sequence[Run]], bool]:
  return lambda ax, runs: _lines(ax, runs, [(metric, metric.split("/")[1])], title, unit)


def _control(ax: Axes, runs: Sequence[Run]) -> bool:
  names = [(name, name.split("/")[1]) for name in _first_names(runs, "control/")]
  return bool(names) and _lines(ax, runs, names, "Controlled values", "value")


PICTURES = {
    "account": _of_one(report_ledger.running_account), "entropy": _entropy, "reward": _reward,
    "pass": _pass, "classes": _of_one(report_ledger.classes), "theory": _theory,
    "changed": _simple("method/tokens_changed", "Tokens that the method changed", "share"),
    "length": _simple("response_length/mean", "Length of responses", "tokens"),
    "gradient": _simple("train/grad_norm", "Gradient norm before clipping", "norm"),
    "difference": _simple("sampling/logp_difference/max",
                          "Largest difference of log-probs, trainer and sampler", "nats"),
    "control": _control}


def pictures(runs: list[Run]) -> dict[str, str]:
  """SVG text of every picture that has something to show."""
  found = {}
  with plt.rc_context(STYLE):
    for name, draw in PICTURES.items():
      figure, ax = plt.subplots(figsize=(5.6, 3.3), layout="constrained")
      if draw(ax, runs):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        found[name] = text[text.index("<svg"):]  # without the XML header
      plt.close(figure)
  return found


def poster(runs: list[Run], path: pathlib.Path) -> None:
  """The account of entropy where there is one, entropy, pass@k and reward, as one PNG; without an
  account, or of several runs, the tested theory of the change of entropy in its place."""
  accounted = len(runs) == 1 and report_ledger.accounted(runs[0].rows)
  first = PICTURES["account"] if accounted else _theory
  with plt.rc_context({**STYLE, "figure.facecolor": "white", "savefig.facecolor": "white"}):
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.6), layout="constrained")
    for ax, draw in zip(axes.flat, (first, _entropy, _pass, _reward), strict=True):
      draw(ax, runs)
    figure.suptitle(", ".join(run.label for run in runs), x=0.01, ha="left", fontsize=13)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def summary(run: Run) -> list[tuple[str, str, str]]:
  """(name, before -> after, intervals of after and of the paired change) of the evaluations."""
  if not run.evals:
    return []
  first, last = run.evals[0], run.evals[-1]
  ks = run.ks()
  names = [f"pass@{k}" for k in sorted({ks[0], ks[-1]})] if ks else []
  names += ["greedy", "distinct", "entropy"]
  cards = []
  for name in names:
    before, after = first.get(f"eval/{name}"), last.get(f"eval/{name}")
    if before is None or after is None:
      continue
    note = "nats a token"
    if f"eval/{name}_low" in last:
      low, high = last[f"eval/{name}_low"], last[f"eval/{name}_high"]
      note = f"95 % interval {low:.3f} to {high:.3f}"
    if f"eval/{name}_change_low" in last:
      change, low, high = (last[f"eval/{name}_change{end}"] for end in ("", "_low", "_high"))
      note += f"; paired change {change:+.3f}, {low:+.3f} to {high:+.3f}"
    cards.append((name, f"{before:.3f} → {after:.3f}", note))
  return cards


def shade(entropy: float, top: float) -> float:
  """Opacity of a token's colour: 0 for certain, 0.85 at `top` nats and over."""
  return round(0.85 * min(max(entropy / top, 0.0), 1.0), 3)


def write(folder: pathlib.Path, *others: pathlib.Path) -> pathlib.Path:
  """report.html and report.png of one run, or compare.html and compare.png of several.

  Raises FileNotFoundError for a folder that is no run, ValueError for a run without a line.
  """
  runs = [Run(pathlib.Path(f)) for f in (folder, *others)]
  template = (resources.files("entrolab.trainer") / "report.html.j2").read_text("utf-8")
  page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                            undefined=jinja2.StrictUndefined).from_string(template)
  samples = runs[0].samples() if len(runs) == 1 else []
  values = [h for part in samples for row in part["rows"] for h in row["entropy"]]
  top = max(float(np.quantile(values, 0.95)), 0.1) if values else 1.0
  stem = "report" if len(runs) == 1 else "compare"
  text = page.render(runs=runs, figures=pictures(runs), samples=samples, top=top, shade=shade,
                     cards=[summary(run) for run in runs],
                     config=[json.dumps(run.config, indent=1) for run in runs])
  path = pathlib.Path(folder) / f"{stem}.html"
  write_text(path, text)
  poster(runs, path.with_suffix(".png"))
  return path


def main(argv: list[str] | None = None) -> None:
  """Writes the page and prints its path."""
  parser = argparse.ArgumentParser(prog="entrolab.trainer.report", description=__doc__)
  parser.add_argument("run", nargs="+", type=pathlib.Path, help="run directory")
  args = parser.parse_args(argv)
  try:
    print(write(*args.run))
  except (FileNotFoundError, ValueError) as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
