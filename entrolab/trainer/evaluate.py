"""Held-out problems: greedy, avg@n, unbiased pass@k, maj@k, with 95 % intervals over problems.

Every evaluation of a run asks the same problems with the same keys, so that before and after
differ by the policy alone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from entrolab import keys, sharding
from entrolab.experiment import Experiment
from entrolab.rollout.engine import Engine
from entrolab.verify import UNKNOWN, vote


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
  """[P] of right [P, N]: 1 - C(N - c, k) / C(N, k), c right ones; unbiased for k <= N.

  Chen et al., arXiv:2107.03374, equation 1. Raises ValueError for k outside 1 to N.
  """
  count = right.shape[1]
  if not 1 <= k <= count:
    raise ValueError(f"pass@{k} of {count} samples: k must be 1 to {count}")
  missed = [math.comb(count - int(c), k) / math.comb(count, k) for c in right.sum(1)]
  return 1.0 - np.asarray(missed)


def majority_right(keys: Sequence[str | None], right: Sequence[bool]) -> float:
  """Whether the most frequent answer of a problem is right; answers that tie share the vote.

  A response without an answer (None) has no vote; nobody voting is wrong. Members of a class count
  by their own verdicts, so that a class of several verdicts counts by its share.
  """
  classes = vote.cluster(keys)
  votes = {c: [r for k, r in zip(classes, right, strict=True) if k == c]
           for c in classes if c is not None}
  if not votes:
    return 0.0
  most = max(map(len, votes.values()))
  return float(np.mean([np.mean(v) for v in votes.values() if len(v) == most]))


def interval(values: np.ndarray) -> tuple[float, float, float]:
  """(mean, low, high): normal 95 % interval of a mean over problems; itself for one problem."""
  mean = float(values.mean())
  half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
  return mean, mean - half, mean + half


def metrics(right: np.ndarray, texts: Sequence[str], ks: Sequence[int],
            key_of: Callable[[str], str | None] = vote.key, problems: int | None = None
            ) -> dict[str, float]:
  """eval/* of right [P, N] and P x N texts: pass@k with intervals, maj@N, distinct right ones.

  problems: how many all processes hold, when these are those of one of several.
  """
  count = right.shape[1]
  found: dict[str, np.ndarray] = {f"pass@{k}": pass_at_k(right, k) for k in ks}
  rows = [texts[at:at + count] for at in range(0, len(texts), count)]
  found[f"maj@{count}"] = np.asarray([
      majority_right([key_of(t) for t in row], list(r)) for row, r in zip(rows, right,
                                                                           strict=True)])
  found["distinct"] = np.asarray([len({t for t, ok in zip(row, r, strict=True) if ok})
                                  for row, r in zip(rows, right, strict=True)], float)
  out = {}
  for name, values in found.items():
    mean, low, high = interval(sharding.interleaved(values, problems or len(values)))
    out |= {f"eval/{name}": mean, f"eval/{name}_low": low, f"eval/{name}_high": high}
  return out


def evaluate(engine: Engine, params: Any, problems: Sequence, key: jax.Array,
             experiment: Experiment) -> tuple[dict[str, float], np.ndarray]:
  """(eval/* metrics, right [P, N]) of the policy; every process takes its share of the problems."""
  e, total, count = experiment.evaluation, len(problems), jax.process_count()
  chunk, own = experiment.sampling.prompts // count, problems[jax.process_index()::count]
  key = keys.evaluation(key)
  slots = min(experiment.sampling.slots, chunk * count * e.samples)
  sampling = dataclasses.replace(experiment.sampling, samples=e.samples, top_k=0, slots=slots,
                                 temperature=e.temperature, top_p=e.top_p)
  once = dataclasses.replace(sampling, samples=1, temperature=0.0, top_p=1.0, slots=0)
  right, texts, entropy, tokens, unknown, greedy = [], [], 0.0, 0, 0, []
  for at in range(0, -(-total // count), chunk):  # as often on every process
    part = list(own[at:at + chunk])
    fill = part + list(part or problems)[:1] * (chunk - len(part))  # one shape, one compilation
    many = engine.rollout(params, fill, key, 0, sampling)
    rows = len(part) * e.samples
    verdicts = many.verdicts[:rows]
    right += [v.status == "right" for v in verdicts]
    unknown += sum(v.code == UNKNOWN for v in verdicts)
    texts += many.texts[:rows]
    h, on = (x[:rows] for x in sharding.local((many.batch.old_entropy, many.batch.mask)))
    entropy, tokens = entropy + float(h[on].sum()), tokens + int(on.sum())
    one = engine.rollout(params, fill, key, 0, once)
    greedy += [v.status == "right" for v in one.verdicts[:len(part)]]
  matrix = np.asarray(right, bool).reshape(-1, e.samples)
  out = metrics(matrix, texts, e.ks, engine.task.key, total)
  mean, low, high = interval(sharding.interleaved(np.asarray(greedy, float), total))
  matrix = sharding.interleaved(matrix, total)
  sums = sharding.interleaved(np.asarray([[entropy, tokens, unknown]]), count).sum(0)
  out |= {f"eval/avg@{e.samples}": float(matrix.mean()), "eval/greedy": mean,
          "eval/greedy_low": low, "eval/greedy_high": high,
          "eval/entropy": float(sums[0] / max(sums[1], 1)),
          "eval/unknown": float(sums[2] / matrix.size), "eval/length": float(sums[1] / matrix.size)}
  return out, matrix
