"""Held-out problems: greedy, avg@n, unbiased pass@k, maj@k, with 95 % intervals over problems.

Unknown is not wrong: a response whose verdict is unknown is left out, as if it had not been drawn,
and a problem that has nothing left for a metric is left out of it. eval/unknown is the share of the
samples that were left out; a metric for which no problem is left is NaN.

Every evaluation of a run samples the same problems with the same keys, so that before and after
differ by the policy alone: `changes` are paired. Intervals are Wilson's (`trainer.intervals`).
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
from entrolab.trainer.intervals import change, interval
from entrolab.verify import RIGHT, codes, vote

Values = dict[str, np.ndarray]  # [P] of every problem, by the name of the metric


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


def metrics(right: np.ndarray, texts: Sequence[str], ks: Sequence[int],
            key_of: Callable[[str], str | None] = vote.key, problems: int | None = None,
            groups: row_groups.RowGroups = row_groups.ALONE, questions: Sequence[str] | None = None
            ) -> dict[str, float]:
  """eval/* of right [P, N] and P x N texts: pass@k with intervals, maj@N, distinct right ones.

  right: as of `pass_at_k`. problems: how many there are in all groups of processes, where `right`
  is of one of several. questions: of all of them, where some are the same; None: all different.
  """
  found = of_problems(right, texts, ks, key_of)
  return with_intervals({name: groups.interleaved(values, problems or len(values))
                         for name, values in found.items()}, right.shape[1], questions)


def of_problems(right: np.ndarray, texts: Sequence[str], ks: Sequence[int],
                key_of: Callable[[str], str | None] = vote.key) -> Values:
  """What `metrics` averages."""
  count = right.shape[1]
  found: dict[str, np.ndarray] = {f"pass@{k}": pass_at_k(right, k) for k in ks}
  rows = [texts[at:at + count] for at in range(0, len(texts), count)]
  found[f"maj@{count}"] = np.asarray([
      majority_right([key_of(t) for t in row], list(r)) for row, r in zip(rows, right,
                                                                           strict=True)])
  found["distinct"] = np.asarray([len({t for t, v in zip(row, r, strict=True) if v == RIGHT})
                                  for row, r in zip(rows, right, strict=True)], float)
  return found


def with_intervals(values: Values, samples: int, questions: Sequence[str] | None = None
                   ) -> dict[str, float]:
  """eval/NAME, with _low and _high, of the values of all problems."""
  out = {}
  for name, of_all in values.items():
    mean, low, high = interval(of_all, questions, most(name, samples))
    out |= {f"eval/{name}": mean, f"eval/{name}_low": low, f"eval/{name}_high": high}
  return out


def changes(before: Values, after: Values, samples: int, questions: Sequence[str] | None = None
            ) -> dict[str, float]:
  """eval/NAME_change, with _low and _high: after less before, paired by problem."""
  out = {}
  for name in after.keys() & before.keys():
    found, low, high = change(np.asarray(before[name]), after[name], questions,
                              most(name, samples))
    out |= {f"eval/{name}_change": found, f"eval/{name}_change_low": low,
            f"eval/{name}_change_high": high}
  return dict(sorted(out.items()))


def most(name: str, samples: int) -> float:
  """The largest value of a metric: distinct right answers are counted, all others are shares."""
  return float(samples) if name == "distinct" else 1.0


def evaluate(engine: Engine, params: Params, problems: Sequence[Example], key: jax.Array,
             experiment: Experiment) -> tuple[dict[str, float], Values]:
  """(eval/* metrics, values of the problems) of the policy; every group of processes takes its
  share of them.

  At most as many rows are decoded at once as in training, whatever the number of samples
  (`Experiment.evaluation_calls`): the caches of evaluation take no more memory than those.
  """
  e = experiment.evaluation
  count = engine.groups.count
  calls, slots = experiment.evaluation_calls(sharding.row_devices(engine.mesh))
  chunk = calls // count  # problems of this group in one call of the engine
  share = problems[engine.groups.index::count]
  key = keys.evaluation(key)
  # as in training, but for the distribution that evaluation draws from and the number of samples
  sampling = dataclasses.replace(
      experiment.sampling, samples=e.samples, temperature=e.temperature, top_p=e.top_p, top_k=0,
      slots=slots)
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
  questions = [engine.task.question(example) for example in problems]
  return seen.summary(e, len(problems), engine.task.key, engine.groups, questions)


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
              groups: row_groups.RowGroups, questions: Sequence[str]
              ) -> tuple[dict[str, float], Values]:
    """(eval/* metrics, values of the problems) over the problems of all groups."""
    verdicts = np.asarray(self.verdicts, np.int32).reshape(-1, e.samples)
    of_greedy = np.asarray(self.greedy, float)
    found = {**of_problems(verdicts, self.texts, e.ks, key_of),
             "greedy": np.where(of_greedy < 0, np.nan, of_greedy)}
    values = {name: groups.interleaved(x, problems) for name, x in found.items()}
    out = with_intervals(values, e.samples, questions)
    verdicts = groups.interleaved(verdicts, problems)
    known = verdicts >= 0
    of_groups = np.asarray([[self.entropy, self.tokens]])
    entropy, tokens = groups.interleaved(of_groups, groups.count).sum(0)
    right = (verdicts[known] == RIGHT).astype(float)
    return {**out, f"eval/avg@{e.samples}": float(right.mean()) if right.size else math.nan,
            "eval/entropy": float(entropy / max(tokens, 1)),
            "eval/unknown": float((~known).mean()),
            "eval/length": float(tokens / verdicts.size)}, values
