"""Held-out problems: greedy, avg@n, unbiased pass@k, maj@k, with 95 % intervals over problems.

Unknown is not wrong: a response whose verdict is unknown is left out, as if it had not been drawn,
and a problem that has nothing left for a metric is left out of it. eval/unknown is the share of the
samples that were left out; a metric for which no problem is left is NaN.

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
from entrolab.verify import RIGHT, codes, vote


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
  """[P] of verdicts [P, N]: 1 - C(n - c, k) / C(n, k), n known ones, c right; unbiased for k <= n.

  Chen et al., arXiv:2107.03374, equation 1. right: true or 1, false or 0, and -1 for unknown. NaN
  for a problem with fewer than k known verdicts. Raises ValueError for k outside 1 to N.
  """
  count = right.shape[1]
  if not 1 <= k <= count:
    raise ValueError(f"pass@{k} of {count} samples: k must be 1 to {count}")
  found = []
  for row in right:
    known, c = int((row >= 0).sum()), int((row == RIGHT).sum())
    missed = math.comb(known - c, k) / math.comb(known, k) if known >= k else math.nan
    found.append(1.0 - missed)
  return np.asarray(found)


def majority_right(keys: Sequence[str | None], right: Sequence[int]) -> float:
  """Whether the most frequent answer of a problem is right; answers that tie share the vote.

  A response without an answer (None) has no vote; without any vote the answer is wrong. Equal
  answers may have several verdicts: their class is right by the share of its members that are.
  right: as of `pass_at_k`; a response of unknown verdict has no vote, and of those alone it is NaN.
  """
  known = [at for at, verdict in enumerate(right) if verdict >= 0]
  if not known:
    return math.nan
  keys, right = [keys[at] for at in known], [right[at] for at in known]
  classes = vote.cluster(keys)
  votes = {c: [r for k, r in zip(classes, right, strict=True) if k == c]
           for c in classes if c is not None}
  if not votes:
    return 0.0
  most = max(map(len, votes.values()))
  return float(np.mean([np.mean(v) for v in votes.values() if len(v) == most]))


def interval(values: np.ndarray) -> tuple[float, float, float]:
  """(mean, low, high): normal 95 % interval of a mean over problems; itself for one problem.

  Problems whose value is NaN are left out; of none all three are NaN.
  """
  values = values[~np.isnan(values)]
  if not len(values):
    return math.nan, math.nan, math.nan
  mean = float(values.mean())
  half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
  return mean, mean - half, mean + half


def metrics(right: np.ndarray, texts: Sequence[str], ks: Sequence[int],
            key_of: Callable[[str], str | None] = vote.key, problems: int | None = None,
            groups: row_groups.RowGroups = row_groups.ALONE) -> dict[str, float]:
  """eval/* of right [P, N] and P x N texts: pass@k with intervals, maj@N, distinct right ones.

  right: as of `pass_at_k`. problems: how many there are in all groups of processes, where `right`
  is of one of several.
  """
  count = right.shape[1]
  found: dict[str, np.ndarray] = {f"pass@{k}": pass_at_k(right, k) for k in ks}
  rows = [texts[at:at + count] for at in range(0, len(texts), count)]
  found[f"maj@{count}"] = np.asarray([
      majority_right([key_of(t) for t in row], list(r)) for row, r in zip(rows, right,
                                                                           strict=True)])
  found["distinct"] = np.asarray([len({t for t, v in zip(row, r, strict=True) if v == RIGHT})
                                  for row, r in zip(rows, right, strict=True)], float)
  out = {}
  for name, values in found.items():
    mean, low, high = interval(groups.interleaved(values, problems or len(values)))
    out |= {f"eval/{name}": mean, f"eval/{name}_low": low, f"eval/{name}_high": high}
  return out


def evaluate(engine: Engine, params: Params, problems: Sequence[Example], key: jax.Array,
             experiment: Experiment) -> tuple[dict[str, float], np.ndarray]:
  """(eval/* metrics, verdicts [P, N]) of the policy; every group of processes takes its share of
  the problems."""
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
    seen.greedy += codes(greedy_rows.verdicts[:len(part)])
  return seen.summary(e, len(problems), engine.task.key, engine.groups)


@dataclasses.dataclass
class _Seen:
  """What one group of processes has seen of its problems, in their order."""

  verdicts: list[int] = dataclasses.field(default_factory=list)  # of the samples, as `codes`
  texts: list[str] = dataclasses.field(default_factory=list)  # of the samples
  greedy: list[int] = dataclasses.field(default_factory=list)  # of the greedy responses
  entropy: float = 0.0  # summed over the tokens of the samples, nats
  tokens: int = 0  # of the samples

  def add_samples(self, rollout: Rollout, rows: int) -> None:
    """Adds the first rows of a rollout."""
    self.verdicts += codes(rollout.verdicts[:rows])
    self.texts += rollout.texts[:rows]
    entropy, mask = (x[:rows] for x in sharding.local((rollout.batch.old_entropy,
                                                       rollout.batch.mask)))
    self.entropy += float(entropy[mask].sum())
    self.tokens += int(mask.sum())

  def summary(self, e: Evaluation, problems: int, key_of: Callable[[str], str | None],
              groups: row_groups.RowGroups) -> tuple[dict[str, float], np.ndarray]:
    """(eval/* metrics, verdicts [P, N]) over the problems of all groups."""
    verdicts = np.asarray(self.verdicts, np.int32).reshape(-1, e.samples)
    out = metrics(verdicts, self.texts, e.ks, key_of, problems, groups)
    of_greedy = np.asarray(self.greedy, float)
    greedy = groups.interleaved(np.where(of_greedy < 0, np.nan, of_greedy), problems)
    mean, low, high = interval(greedy)
    verdicts = groups.interleaved(verdicts, problems)
    known = verdicts >= 0
    of_groups = np.asarray([[self.entropy, self.tokens]])
    entropy, tokens = groups.interleaved(of_groups, groups.count).sum(0)
    return {**out, f"eval/avg@{e.samples}": interval((verdicts[known] == RIGHT).astype(float))[0],
            "eval/greedy": mean, "eval/greedy_low": low, "eval/greedy_high": high,
            "eval/entropy": float(entropy / max(tokens, 1)),
            "eval/unknown": float((~known).mean()),
            "eval/length": float(tokens / verdicts.size)}, verdicts
