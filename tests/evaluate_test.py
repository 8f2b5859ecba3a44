"""Estimators against enumeration, and evaluations in as many calls as memory asks for."""

import dataclasses
import itertools

import numpy as np
import pytest

from entrolab import config
from entrolab.models import tiny
from entrolab.trainer import evaluate, explain
from entrolab.trainer.step import Lab


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right, k):
  row = np.arange(6) < right
  want = np.mean([any(row[list(s)]) for s in itertools.combinations(range(6), k)])
  assert evaluate.pass_at_k(row[None], k)[0] == pytest.approx(want, abs=1e-12)


def test_pass_at_k_refuses_more_than_there_are():
  with pytest.raises(ValueError, match="pass@8 of 4 samples"):
    evaluate.pass_at_k(np.ones((1, 4), bool), 8)


@pytest.mark.parametrize("keys, right, want", [
    (["a", "a", "b"], [True, True, False], 1.0),
    (["a", "b", "b"], [True, False, False], 0.0),
    (["a", "b"], [True, False], 0.5),  # a tie is shared
    ([None, None, "b"], [False, False, True], 1.0),  # silence has no vote
    ([None], [False], 0.0),
])
def test_majority(keys, right, want):
  assert evaluate.majority_right(keys, right) == want


def test_intervals_cover():
  rng, hits = np.random.default_rng(0), 0
  for _ in range(400):
    _, low, high = evaluate.interval(rng.binomial(16, 0.4, 100) / 16)
    hits += low <= 0.4 <= high
  assert 0.92 < hits / 400 < 0.98


def calls(prompts, samples, evaluated, ways=1, slots=0, recipe="experiments/toy.py"):
  made = config.load(recipe, (f"sampling.prompts={prompts}", "training.updates=1"))
  return dataclasses.replace(
      made, sampling=dataclasses.replace(made.sampling, samples=samples, slots=slots),
      objective=dataclasses.replace(made.objective, advantage=()),
      evaluation=dataclasses.replace(made.evaluation, samples=evaluated, ks=(1,))
  ).evaluation_calls(ways)


@pytest.mark.parametrize("prompts, samples, evaluated, ways, slots, want", [
    (32, 8, 8, 1, 0, (32, 0)), (32, 8, 16, 1, 0, (16, 0)), (32, 8, 4, 1, 0, (32, 0)),
    (32, 8, 256, 1, 0, (1, 0)), (32, 8, 512, 1, 0, (1, 256)), (128, 8, 256, 16, 0, (16, 1024)),
    (128, 8, 8, 16, 0, (128, 0)), (128, 8, 24, 16, 0, (32, 0)), (32, 8, 16, 1, 64, (32, 64))])
def test_an_evaluation_decodes_no_more_rows_at_once_than_training(prompts, samples, evaluated, ways,
                                                                  slots, want):
  problems, at_once = calls(prompts, samples, evaluated, ways, slots)
  assert (problems, at_once) == want and problems % ways == 0
  assert (at_once or problems * evaluated) <= (slots or prompts * samples)


def test_memory_counts_the_cache_of_an_evaluation():
  experiment, (model, _, _) = config.load("experiments/toy.py"), tiny.load()
  of_evaluation = "key-value cache of an evaluation"
  cache = lambda e: explain.memory(e, model, 10)
  assert cache(experiment)[of_evaluation] == cache(experiment)["key-value cache"]
  few = dataclasses.replace(experiment, evaluation=dataclasses.replace(
      experiment.evaluation, samples=1, ks=(1,)))
  assert cache(few)[of_evaluation] * 8 == cache(few)["key-value cache"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled", "libraries_promote")
def test_an_evaluation_in_many_calls_is_the_same():
  """All at once, two problems a call, and one problem a call in slots."""
  found = []
  for prompts in (8, 2, 1):
    made = config.load("experiments/toy.py", (
        f"sampling.prompts={prompts}", "training.updates=1", "evaluation.problems=6",
        "evaluation.samples=16", "evaluation.ks=(1, 16)", "mesh.data=1"))
    lab = Lab(dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, samples=8)))
    found.append(lab.evaluated(lab.learner.init(lab.params).params))
  for metrics, values in found[1:]:
    assert values == found[0][1]
    assert metrics == pytest.approx(found[0][0], abs=1e-5)
