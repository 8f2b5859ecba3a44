"""Pictures of the entropy ledger: the running account, and what classes of tokens did."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
ROWS = [f"{sign}, p {side} 1/2" for sign in ("A < 0", "A ≥ 0") for side in ("<", "≥")]
QUARTERS = ("lowest", "second", "third", "highest")
Rows = list[dict[str, Any]]  # of metrics.jsonl


def accounted(rows: Rows) -> Rows:
  """The steps that have an account."""
  return [row for row in rows if row.get("ledger/measured") is not None]


def entries(rows: Rows) -> list[str]:
  """Names of the entries that add up to `ledger/measured`, the largest first."""
  names = {name for row in rows for name in row
           if name.startswith("ledger/") and name.count("/") == 1}
  names -= {"ledger/measured", "ledger/explained", "ledger/locality", "ledger/locality_error"}
  weight = lambda name: sum(abs(row.get(name) or 0.0) for row in rows)
  return sorted((name for name in names if weight(name) > 0.0), key=weight, reverse=True)


def running_account(ax: Axes, rows: Rows) -> bool:
  """Running sums of the entries, stacked away from zero, and of the measured change."""
  steps = accounted(rows)
  ax.set_title(f"Account of entropy, {len(steps)} of {len(rows)} steps accounted for")
  ax.set_xlabel("step")
  ax.set_ylabel("nats a token, running sum")
  if not steps:
    return False
  x = [row["step"] for row in steps]
  total = lambda name: np.cumsum([row.get(name) or 0.0 for row in steps])
  # what raises entropy is stacked upwards from zero, what lowers it downwards
  up, down = np.zeros(len(steps)), np.zeros(len(steps))
  width = 0.8 * (min(np.diff(x)) if len(x) > 1 else 1.0)
  for number, name in enumerate(entries(steps)):
    value = total(name)
    bottom = np.where(value >= 0.0, up, down)
    ax.bar(x, value, width, bottom=bottom, color=COLOURS[number % len(COLOURS)], alpha=0.8,
           label=f"{name.removeprefix('ledger/')} {value[-1]:+.4f}")
    up, down = up + np.maximum(value, 0.0), down + np.minimum(value, 0.0)
  measured = total("ledger/measured")
  ax.plot(x, measured, color="black", marker="o", markersize=3,
          label=f"measured {measured[-1]:+.4f}")
  ax.legend(frameon=False, fontsize=7.5)
  return True


def classes(ax: Axes, rows: Rows) -> bool:
  """Effect of the surrogate by sign of A, probability and quarter of entropy, micronats a token of
  the class; numbers in the fields."""
  steps = [row for row in rows if row.get("ledger/table/effect") is not None]
  ax.set_title("What the surrogate's tokens did, micronats a token")
  if not steps:
    return False
  effect, tokens = (np.sum([row[f"ledger/table/{kind}"] for row in steps], axis=(0, -1))
                    for kind in ("effect", "tokens"))
  mean = 1e6 * effect / np.maximum(tokens, 1.0)
  mean, tokens = mean.reshape(4, 4), tokens.reshape(4, 4)
  top = max(float(np.abs(mean).max()), 1e-9)
  ax.imshow(mean, cmap="RdBu", vmin=-top, vmax=top, aspect="auto")
  for i, j in np.ndindex(4, 4):
    ax.text(j, i, f"{mean[i, j]:+.2f}\n{tokens[i, j]:,.0f}", ha="center", va="center", fontsize=7.5)
  ax.set_xticks(range(4), QUARTERS)
  ax.set_yticks(range(4), ROWS)
  ax.set_xlabel("quarter of the entropies of an update; below each effect, its tokens")
  ax.grid(visible=False)
  return True
