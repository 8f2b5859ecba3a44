"""The files of a run: metrics.jsonl, TensorBoard events, samples; and its progress line."""

import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from entrolab import row_groups
from entrolab.rollout.strategy import Rollout
from entrolab.tasks.task import Tokenizer
from entrolab.trainer.files import write_text

Metrics = Mapping[str, Any]  # scalars by name

# Prefixes of metrics that depend on the clock or on the process. Two runs of one configuration on
# one kind of machine agree to the bit in all other metrics.
WALL = ("seconds", "timing_s/", "rollout/tokens_per_second", "rollout/roofline",
        "train/tokens_per_second", "train/roofline", "train/recompilations",
        "rollout/recompilations")
SHOWN = 16  # prompts of a step whose responses are written
LEGEND = (
    "each step: accuracy of its responses; entropy, nats a token (its change by the updates, and\n"
    "  how much of it the ledger explains, where one is kept);\n"
    "  learning signal, groups of unequal rewards; tokens changed, those on which the method acts")


def plain_numbers(metrics: Metrics) -> dict[str, Any]:
  """JSON values: arrays become numbers or lists of them, what is not finite becomes null."""
  def plain(x):
    if isinstance(x, np.ndarray | np.generic | jax.Array):
      x = x.tolist()
    if isinstance(x, list):
      return [plain(entry) for entry in x]
    x = x if isinstance(x, int | str) else float(x)
    return None if isinstance(x, float) and not math.isfinite(x) else x

  return {name: plain(x) for name, x in metrics.items()}


class Log:
  """Writes into a run directory; only process 0 does.

  cursor, step: of the checkpoint that a run resumes from; before: its evaluation before training.
  What was written after the checkpoint is cut, so that the files of a resumed run equal those of
  one that never stopped. Metrics that are not those of the checkpoint are rebuilt, which is said.
  """

  def __init__(self, folder: pathlib.Path, cursor: int = 0, step: int = 0,
               before: Metrics | None = None):
    self.folder, self.lead = folder, jax.process_index() == 0
    self.path = folder / "metrics.jsonl"
    if not self.lead:
      return
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    if is_whole(self.path, cursor, step):
      with open(self.path, "ab") as file:
        file.truncate(cursor)
    else:
      print(rebuilt(self.path, step, before or {}), flush=True)
    for path in (folder / "samples").glob("step_*.jsonl"):
      if int(path.stem.removeprefix("step_")) > step:
        path.unlink()
    if step == 0:
      shutil.rmtree(folder / "events", ignore_errors=True)
    self.events = SummaryWriter(str(folder / "events"), purge_step=step + 1 if step else None)

  @property
  def cursor(self) -> int:
    """Bytes of metrics.jsonl so far."""
    return self.path.stat().st_size if self.lead else 0

  def write(self, step: int, metrics: Metrics) -> None:
    """One line of metrics.jsonl, and one TensorBoard event a metric."""
    if not self.lead:
      return
    row = plain_numbers({"step": step, **metrics})
    with open(self.path, "a", encoding="utf-8") as file:
      file.write(json.dumps(row) + "\n")
    for name, value in row.items():
      if isinstance(value, int | float) and "/" in name:
        self.events.add_scalar(name, value, step)

  def samples(self, step: int, rollout: Rollout, tokenizer: Tokenizer, group: int) -> None:
    """The responses to the first prompts of the step, token by token; group: G.

    Every process takes part, since another one may hold these rows.
    """
    batch = rollout.batch
    tokens, mask, entropy, logp, rewards = row_groups.everywhere(
        (batch.tokens, batch.mask, batch.old_entropy, batch.old_logp, batch.rewards))
    known = row_groups.of_array(batch.tokens).of_all([
        (example.prompt, example.answer, verdict.status, verdict.why)
        for example, verdict in zip(rollout.examples, rollout.verdicts, strict=True)])
    if not self.lead:
      return
    lines = []
    for row, (prompt, answer, status, why) in enumerate(known[:SHOWN * group]):
      on = mask[row]
      lines.append(json.dumps({
          "step": step, "prompt": prompt, "answer": answer,
          "tokens": [tokenizer.decode([int(t)]) for t in tokens[row][on]],
          "ids": tokens[row][on].tolist(), "entropy": np.round(entropy[row][on], 4).tolist(),
          "logp": np.round(logp[row][on], 4).tolist(), "verdict": status, "why": why,
          **plain_numbers({"reward": rewards[row]})}))
    write_text(self.folder / "samples" / f"step_{step:06d}.jsonl", "\n".join(lines) + "\n")

  def close(self) -> None:
    """Flushes the events."""
    if self.lead:
      self.events.close()


def is_whole(path: pathlib.Path, cursor: int, step: int) -> bool:
  """Whether the first `cursor` bytes of metrics.jsonl are there, and end with the row of `step`."""
  if cursor == 0:
    return True
  if not path.is_file() or path.stat().st_size < cursor:
    return False
  rows = path.read_bytes()[:cursor].splitlines(keepends=True)
  return rows[-1].endswith(b"\n") and _step(rows[-1]) == step


def rebuilt(path: pathlib.Path, step: int, before: Metrics) -> str:
  """Writes metrics.jsonl anew up to a step, from the rows that can be read and the evaluation
  before training; returns the sentence that says which steps have no row."""
  rows: dict[int, bytes] = {}
  for row in path.read_bytes().splitlines() if path.is_file() else []:
    of = _step(row)
    if of is not None and of <= step:
      rows.setdefault(of, row)  # the evaluation after training repeats the last step
  if before and 0 not in rows:
    rows[0] = json.dumps(plain_numbers({"step": 0, "tokens": 0, "seconds": 0.0, **before})).encode()
  write_text(path, "".join(rows[of].decode() + "\n" for of in sorted(rows)))
  missing = [of for of in range(step + 1) if of not in rows]
  return (f"{path} is not what the checkpoint of step {step} was written with: rebuilt from what "
          f"can be read; no row for {len(missing)} of its steps"
          + (f", {missing[0]} to {missing[-1]}" if missing else ""))


def _step(row: bytes) -> int | None:
  """The step of a row of metrics.jsonl; None for a row that cannot be read."""
  try:
    return int(json.loads(row)["step"])
  except (ValueError, KeyError, TypeError):
    return None


def line(step: int, steps: int, m: Metrics, seconds: float) -> str:
  """The progress line of a step, as LEGEND explains it; seconds: until the last step."""
  change = ""
  if "entropy/measured" in m:
    change = f" ({m['entropy/measured']:+.4f})"
  if "ledger/measured" in m:
    change = f" ({m['ledger/measured']:+.4f}, {m['ledger/explained']:.1%} explained)"
  minutes, rest = divmod(int(seconds), 60)
  length = m["response_length/mean"]
  changed = m["method/tokens_changed"]
  parts = (f"step {step:>{len(str(steps))}}/{steps}",
           f"accuracy {m['reward/accuracy']:.3f}",
           f"entropy {m['entropy/exact']:.3f}{change}",
           f"learning signal {m['rollout/groups_with_signal']:.0%}",
           f"tokens changed {changed:.{1 if changed < 0.1 else 0}%}",
           f"length {length:.{1 if length < 100 else 0}f}",
           f"{m['rollout/tokens_per_second']:,.0f} tok/s",
           f"{minutes}:{rest:02d} left")
  return "  ".join(parts)


def left_out(evaluation: Metrics) -> str:
  """How many samples an evaluation has left out, as the end of a sentence; empty for none."""
  share = evaluation["eval/unknown"]
  return f"; {share:.1%} of the samples have no verdict and are left out" if share else ""


def verdict(before: Metrics, after: Metrics, ks: tuple[int, ...]) -> str:
  """The evaluations before and after training, for people, with their intervals, and the change of
  the same problems with its own."""
  def with_interval(name, m):
    return f"{m[f'eval/{name}']:.3f} [{m[f'eval/{name}_low']:.3f}, {m[f'eval/{name}_high']:.3f}]"

  def paired(name):
    if f"eval/{name}_change" not in after:  # the run began before values of problems were stored
      return ""
    low, high = (after[f"eval/{name}_change_{end}"] for end in ("low", "high"))
    return f", paired {after[f'eval/{name}_change']:+.3f} [{low:+.3f}, {high:+.3f}]"

  lines = [f"{name} {with_interval(name, before)} -> {with_interval(name, after)}{paired(name)}"
           for name in (*(f"pass@{k}" for k in sorted({min(ks), max(ks)})), "greedy")]
  lines += [f"{name} {before[f'eval/{name}']:.3f} -> {after[f'eval/{name}']:.3f}"
            for name in ("distinct", "entropy")]
  return "\n  ".join(lines)
