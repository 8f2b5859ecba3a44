"""What a run leaves behind: metrics.jsonl, TensorBoard events, samples, one line a step."""

import json
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from entrolab import sharding
from entrolab.rollout.strategy import Rollout
from entrolab.trainer.files import write_text

# what begins like this in a line of metrics.jsonl is the clock's or the process's: two runs of the
# same numbers differ in nothing else
WALL = ("seconds", "time/", "rollout/tokens_per_second", "rollout/roofline",
        "train/tokens_per_second", "train/roofline", "train/recompilations",
        "rollout/recompilations")
SHOWN = 16  # prompts whose rollouts are kept of a step


def plain_numbers(metrics: dict[str, Any]) -> dict[str, Any]:
  """JSON values: arrays become numbers, what is not finite becomes null."""
  def one(x):
    x = x if isinstance(x, int | str) else float(x)
    return None if isinstance(x, float) and not math.isfinite(x) else x

  return {name: one(x.item() if hasattr(x, "item") else x) for name, x in metrics.items()}


class Log:
  """Writes into a run directory; only process 0 does. `cursor` of a checkpoint cuts what was
  written after it, so that a resumed run's files equal those of one that never stopped."""

  def __init__(self, folder: pathlib.Path, cursor: int = 0, step: int = 0):
    self.folder, self.lead = folder, jax.process_index() == 0
    self.path = folder / "metrics.jsonl"
    if not self.lead:
      return
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    with open(self.path, "ab") as file:
      file.truncate(cursor)
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

  def write(self, step: int, metrics: dict[str, Any]) -> None:
    """One line, and one event a number."""
    if not self.lead:
      return
    row = plain_numbers({"step": step, **metrics})
    with open(self.path, "a", encoding="utf-8") as file:
      file.write(json.dumps(row) + "\n")
    for name, value in row.items():
      if isinstance(value, int | float) and "/" in name:
        self.events.add_scalar(name, value, step)

  def samples(self, step: int, rollout: Rollout, tokenizer: Any, group: int) -> None:
    """The rows of the first prompts, token by token."""
    if not self.lead:
      return
    b = rollout.batch
    tokens, mask, entropy, logp, rewards = sharding.local(
        (b.tokens, b.mask, b.old_entropy, b.old_logp, b.rewards))
    lines = []
    for row in range(min(SHOWN * group, len(rollout.texts))):
      on, example, verdict = mask[row], rollout.examples[row], rollout.verdicts[row]
      lines.append(json.dumps({
          "step": step, "prompt": example.prompt, "answer": example.answer,
          "tokens": [tokenizer.decode([int(t)]) for t in tokens[row][on]],
          "ids": tokens[row][on].tolist(), "entropy": np.round(entropy[row][on], 4).tolist(),
          "logp": np.round(logp[row][on], 4).tolist(), "verdict": verdict.status,
          "why": verdict.why, "reward": float(rewards[row])}))
    write_text(self.folder / "samples" / f"step_{step:06d}.jsonl", "\n".join(lines) + "\n")

  def close(self) -> None:
    """Flushes the events."""
    if self.lead:
      self.events.close()


def line(step: int, steps: int, m: dict[str, Any], seconds: float) -> str:
  """The progress line: accuracy, entropy, its measured and predicted change, signal, cost."""
  change = ""
  if "entropy/measured" in m:
    change = f" dH {m['entropy/measured']:+.4f} (pred {m['entropy/predicted']:+.4f})"
  minutes, rest = divmod(int(seconds), 60)
  return (f"step {step:>{len(str(steps))}}/{steps}  acc {m['reward/right']:.3f}  "
          f"H {m['entropy/exact']:.3f}{change}  signal {m['rollout/groups_with_signal']:.0%}  "
          f"touched {m['method/touched']:.1%}  len {m['rollout/length']:.1f}  "
          f"{m['rollout/tokens_per_second']:,.0f} tok/s  eta {minutes}:{rest:02d}")


def verdict(before: dict[str, float], after: dict[str, float], ks: tuple[int, ...]) -> str:
  """Before -> after, for people."""
  def part(name):
    shown = [f"{m[f'eval/{name}']:.3f} [{m[f'eval/{name}_low']:.3f}, {m[f'eval/{name}_high']:.3f}]"
             for m in (before, after)]
    return f"{name} {' -> '.join(shown)}"

  parts = [part(f"pass@{k}") for k in sorted({min(ks), max(ks)})] + [part("greedy")]
  parts += [f"{name} {before[f'eval/{name}']:.3f} -> {after[f'eval/{name}']:.3f}"
            for name in ("distinct", "entropy")]
  return "\n  ".join(parts)
