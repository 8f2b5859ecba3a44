"""Names of metrics that changed, so that files of older runs can still be read."""

import pathlib
from typing import Any

from absl import logging

# new -> old
FORMER_NAMES = {
    "theory/covariance": "entropy/predicted",
    "theory/logit_step": "entropy/logit_step",
    "response_length/mean": "rollout/length",
    "reward/accuracy": "reward/right",
    "sampling/logp_difference/max": "rollout/logp_gap",
    "sampling/logp_difference/mean": "rollout/logp_gap_mean",
    "train/ppo_kl": "train/kl",
    "method/tokens_changed": "method/touched",
    "timing_s/rollout": "time/rollout",
    "timing_s/forward": "time/score",
    "timing_s/train": "time/train",
    "timing_s/measure": "time/measure",
    "timing_s/verify": "time/verify"}


def under_current_names(rows: list[dict[str, Any]], path: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of metrics.jsonl under the names of today; a warning lists those that had another one."""
  current = {old: new for new, old in FORMER_NAMES.items()}
  renamed = sorted({name for row in rows for name in row} & current.keys())
  if renamed:
    logging.warning("%s was written under former names of metrics, which are read as the present "
                    "ones: %s", path, ", ".join(f"{old} -> {current[old]}" for old in renamed))
  return [{current.get(name, name): value for name, value in row.items()} for row in rows]
