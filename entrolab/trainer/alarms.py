"""Alarms for runs that go on and have become meaningless, each with its likely causes, most likely
first, and the hyper-parameter to change."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from absl import logging

from entrolab.experiment import Experiment
from entrolab.trainer.log import Metrics
from entrolab.verify import Verdict, unknown_reasons

ALARMS = ("collapse", "explosion", "no_signal", "unknown")
UNKNOWN = 0.05  # share of unknown verdicts that is worth a warning
COLLAPSE, EXPLOSION = 0.2, 3.0  # times the entropy before training
ROOM = 0.5  # nats a token above it that are no explosion yet
LARGE_STEP = 0.02  # nats a token between the policy before and after the updates of one rollout
LARGE_DIFFERENCE = 0.01  # nats a token between the log-probs of sampler and trainer


def watch(experiment: Experiment, step: int, before: Mapping[str, float], metrics: Metrics,
          verdicts: Sequence[Verdict], lasting: Collection[str]) -> list[str]:
  """The names of the alarms of a step; those that do not last since the step before are logged.

  before: eval/* before training; lasting: the alarms of the step before.
  """
  found = alarms(experiment, before, metrics, verdicts)
  for name in found.keys() - set(lasting):
    logging.warning("step %d: %s", step, found[name])
  return sorted(found)


def as_metrics(names: Collection[str]) -> dict[str, float]:
  """alarm/*: 1 while an alarm lasts."""
  return {f"alarm/{name}": float(name in names) for name in ALARMS}


def alarms(experiment: Experiment, before: Mapping[str, float], metrics: Metrics,
           verdicts: Sequence[Verdict]) -> dict[str, str]:
  """What is wrong with a step, by name: the sentence to show. before: eval/* before training."""
  found = {}
  entropy = float(metrics["entropy/exact"])
  first = float(before["eval/entropy"])
  change = f"{entropy:.3g} nats a token, {first:.3g} before training"
  if entropy < COLLAPSE * first:
    causes = "; ".join(collapse_causes(experiment, first, metrics))
    found["collapse"] = (f"entropy has collapsed: {change}; samples of a prompt repeat each other "
                         f"and pass@k falls. Likely: {causes}")
  if entropy > max(EXPLOSION * first, first + ROOM):
    causes = "; ".join(explosion_causes(experiment, metrics))
    found["explosion"] = (f"entropy explodes: {change}; responses turn into noise. Likely: "
                          f"{causes}")
  if metrics["reward/unknown"] > UNKNOWN:
    found["unknown"] = (f"{100 * metrics['reward/unknown']:.0f} % of the verdicts are unknown: "
                        f"{unknown_reasons(verdicts)}")
  compares = "adv" in experiment.objective.reads  # demonstrations need no group
  if compares and metrics["rollout/groups_with_signal"] == 0.0:
    more = experiment.sampling.refills + 2
    found["no_signal"] = ("no group has a learning signal: its rewards are equal and every "
                          "advantage is zero. Take easier or harder problems, or --set "
                          f"sampling.refills={more}")
  return found


def collapse_causes(experiment: Experiment, first: float, metrics: Metrics) -> list[str]:
  """Most likely first; first: the entropy before training."""
  causes = list(_large_step(experiment, metrics))
  if experiment.objective.penalties:
    causes += _weights(experiment, "raise")
  else:
    causes.append("nothing in the objective keeps entropy up: --config=experiments/siren.py or "
                  f"--config=experiments/entropy_bonus.py:target={first:.2g}")
  if metrics["reward/accuracy"] > 0.9:
    causes.append("the task is solved: stop here, or take harder problems")
  return causes or [_smaller_step(experiment)]


def explosion_causes(experiment: Experiment, metrics: Metrics) -> list[str]:
  """Most likely first."""
  causes = list(_weights(experiment, "lower")) + list(_large_step(experiment, metrics))
  if metrics["reward/accuracy"] < 0.1:
    causes.append("nearly every sample is wrong, and making wrong answers less likely spreads "
                  "probability over all others: take easier problems")
  difference = metrics.get("sampling/logp_difference/mean", 0.0)
  if difference > LARGE_DIFFERENCE:
    causes.append("sampler and trainer disagree about log-probabilities "
                  f"(sampling/logp_difference/mean {difference:.2g}): --set training.dtype=float32")
  return causes or [_smaller_step(experiment)]


def _smaller_step(experiment: Experiment) -> str:
  return f"--set training.lr={experiment.training.lr / 3:.1e}"


def _large_step(experiment: Experiment, metrics: Metrics) -> Iterator[str]:
  t = experiment.training
  s = experiment.sampling
  moved = metrics.get("train/ppo_kl", 0.0)
  if moved > LARGE_STEP:
    yield (f"steps are too large (train/ppo_kl {moved:.2g} nats a token and rollout): "
           f"{_smaller_step(experiment)}")
    fewer = [updates for updates in range(1, t.updates) if s.prompts % updates == 0
             and s.prompts // updates * s.samples % t.micro == 0]
    if fewer:
      yield f"too many updates a rollout: --set training.updates={fewer[-1]}"


def _weights(experiment: Experiment, change: str) -> Iterator[str]:
  for entry in experiment.objective.penalties:
    if isinstance(entry.beta, str):
      yield f"the target of {entry.value.name} (weight {entry.beta!r} is controlled): {change} it"
    else:
      yield (f"the weight of {entry.value.name}, {entry.beta:g}: {change} it (beta in most "
             "recipes)")
