"""Alarms name what is wrong, its likely causes, and lines that are accepted and act."""

import pytest

from entrolab import config
from entrolab.trainer import alarms

FINE = {"entropy/exact": 0.3, "reward/unknown": 0.0, "rollout/groups_with_signal": 0.5,
        "reward/accuracy": 0.5, "train/ppo_kl": 0.0, "sampling/logp_difference/mean": 0.0}


@pytest.mark.parametrize("recipe, changed, name, said", [
    ("toy.py", {}, None, []),
    ("toy.py", {"entropy/exact": 0.05}, "collapse",
     ["0.05 nats a token, 0.3 before training", "entropy_bonus.py:target=0.3"]),
    ("entropy_bonus.py", {"entropy/exact": 0.05}, "collapse",
     ["the weight of bonus.negative_entropy, 0.03: raise it"]),
    ("toy.py", {"entropy/exact": 0.05, "train/ppo_kl": 0.1, "reward/accuracy": 0.95}, "collapse",
     ["--set training.lr=1.7e-05", "--set training.updates=2", "the task is solved"]),
    ("entropy_bonus.py", {"entropy/exact": 2.0, "reward/accuracy": 0.01}, "explosion",
     ["the weight of bonus.negative_entropy, 0.03: lower it", "nearly every sample is wrong"]),
    ("toy.py", {"entropy/exact": 2.0}, "explosion", ["--set training.lr=1.7e-05"]),
    ("toy.py", {"entropy/exact": 0.7}, None, []),  # within ROOM
    ("toy.py", {"reward/unknown": 0.5}, "unknown", ["50 % of the verdicts are unknown"]),
    ("toy.py", {"rollout/groups_with_signal": 0.0}, "no_signal", ["--set sampling.refills=2"]),
])
def test_alarms_name_causes_and_lines_that_work(recipe, changed, name, said, caplog):
  experiment = config.load(f"experiments/{recipe}")
  before, metrics = {"eval/entropy": 0.3}, {**FINE, **changed}
  lasting = alarms.watch(experiment, 7, before, metrics, [], [])
  assert lasting == ([name] if name else [])
  assert {n for n in alarms.ALARMS if alarms.as_metrics(lasting)[f"alarm/{n}"]} == set(lasting)
  for text in said:
    assert text in caplog.text
  words = caplog.text.replace(";", " ").replace(":", " ").split()
  for flag, value in zip(words, words[1:], strict=False):
    if flag == "--set":
      assert config.load(f"experiments/{recipe}", (value,)) != experiment  # accepted, and acts
  caplog.clear()
  assert alarms.watch(experiment, 8, before, metrics, [], lasting) == lasting
  assert not caplog.text  # said once
