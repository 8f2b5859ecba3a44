"""Held-out problems: greedy, avg@n, unbiased pass@k, maj@k, with 95 % intervals over problems.

Every evaluation of a run samples the same problems with the same keys, so that before and after
differ by the policy alone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from entrolab import keys, row_groups, sharding
from entrolab.experiment import Evaluation, Experiment
from entrolab.models.transformer import Params
from entrolab.rollout.engine import Engine
from entrolab.rollout.strategy import Rollout
from entrolab.tasks.task import Example
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

  A response without an answer (None) has no vote; without any vote the answer is wrong. Equal
  answers may have several verdicts: their class is right by the share of its members that are.
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
            key_of: Callable[[str], str | None] = vote.key, problems: int | None = None,
            groups: row_groups.RowGroups = row_groups.ALONE) -> dict[str, float]:
  """eval/* of right [P, N] and P x N texts: pass@k with intervals, maj@N, distinct right ones.

  problems: how many there are in all groups of processes, where `right` is of one of several.
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
    mean, low, high = interval(groups.interleaved(values, problems or len(values)))
    out |= {f"eval/{name}": mean, f"eval/{name}_low": low, f"eval/{name}_high": high}
  return out


def evaluate(engine: Engine, params: Params, problems: Sequence[Example], key: jax.Array,
             experiment: Experiment) -> tuple[dict[str, float], np.ndarray]:
  """(eval/* metrics, right [P, N]) of the policy; every group of processes takes its share of the
  problems."""
  e = experiment.evaluation
  count = engine.groups.count
  chunk = experiment.sampling.prompts // count  # problems of this group in one call of the engine
  share = problems[engine.groups.index::count]
  key = keys.evaluation(key)
  # as in training, but for the distribution that evaluation draws from and the number of samples
  sampling = dataclasses.replace(
      experiment.sampling, samples=e.samples, temperature=e.temperature, top_p=e.top_p, top_k=0,
      slots=min(experiment.sampling.slots, chunk * count * e.samples))
  greedy = dataclasses.replace(sampling, samples=1, temperature=0.0, top_p=1.0, slots=0)
  seen = _Seen()
  for at in range(0, -(-len(problems) // count), chunk):  # as often in every process
    part = list(share[at:at + chunk])
    # one shape, one compilation: the last part is filled up with a problem that does not count
    fill = part + list(part or problems)[:1] * (chunk - len(part))
    many = engine.rollout(params, fill, key, 0, sampling)
    seen.add_samples(many, len(part) * e.samples)
    greedy_rows = engine.rollout(params, fill, key, 0, greedy)
    seen.greedy += [v.status == "right" for v in greedy_rows.verdicts[:len(part)]]
  return seen.summary(e, len(problems), engine.task.key, engine.groups)


@dataclasses.dataclass
class _Seen:
  """What one group of processes has seen of its problems, in their order."""

  right: list[bool] = dataclasses.field(default_factory=list)  # samples
  texts: list[str] = dataclasses.field(default_factory=list)  # of the samples
  greedy: list[bool] = dataclasses.field(default_factory=list)  # greedy responses that are right
  entropy: float = 0.0  # summed over the tokens of the samples, nats
  tokens: int = 0  # of the samples
  unknown: int = 0  # samples without a verdict

  def add_samples(self, rollout: Rollout, rows: int) -> None:
    """Adds the first rows of a rollout."""
    verdicts = rollout.verdicts[:rows]
    self.right += [v.status == "right" for v in verdicts]
    self.unknown += sum(v.code == UNKNOWN for v in verdicts)
    self.texts += rollout.texts[:rows]
    entropy, mask = (x[:rows] for x in sharding.local((rollout.batch.old_entropy,
                                                       rollout.batch.mask)))
    self.entropy += float(entropy[mask].sum())
    self.tokens += int(mask.sum())

  def summary(self, e: Evaluation, problems: int, key_of: Callable[[str], str | None],
              groups: row_groups.RowGroups) -> tuple[dict[str, float], np.ndarray]:
    """(eval/* metrics, right [P, N]) over the problems of all groups."""
    right = np.asarray(self.right, bool).reshape(-1, e.samples)
    out = metrics(right, self.texts, e.ks, key_of, problems, groups)
    greedy = groups.interleaved(np.asarray(self.greedy, float), problems)
    mean, low, high = interval(greedy)
    right = groups.interleaved(right, problems)
    of_groups = np.asarray([[self.entropy, self.tokens, self.unknown]])
    entropy, tokens, unknown = groups.interleaved(of_groups, groups.count).sum(0)
    return {**out, f"eval/avg@{e.samples}": float(right.mean()),
            "eval/greedy": mean, "eval/greedy_low": low, "eval/greedy_high": high,
            "eval/entropy": float(entropy / max(tokens, 1)),
            "eval/unknown": float(unknown / right.size),
            "eval/length": float(tokens / right.size)}, right
