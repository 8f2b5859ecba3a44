"""C-IP: golden parity with the official functions, coverage, and the toy game."""

import numpy as np
import pytest

from entrolab.analysis import conformal_ip as cip

SELECTION = (
    "simulated labels = every class once, prior over all classes (as in the released code, not "
    "reweighted by the current posterior); lowest value, first index among values within 1e-6 of "
    "the minimum; user answers without flips")


def _functions(case):
  config = case.config
  posteriors, labels = case.raw("cal_posteriors"), case.raw("cal_labels")
  queries, simulated, classes = case.raw("posteriors").shape
  config.expect(Q=queries, n=simulated, C=classes, n_cal=len(labels), units="bits",
                alpha_n="alpha-1/(n+1) with n = number of simulated labels")
  score = cip.scores(posteriors, labels)
  case.compare("cal_scores", score, tolerance=1e-6)
  for name, rank in (("official", "higher"), ("standard", "split")):
    case.compare(f"qhat_{name}", [cip.threshold(score, a, rank=rank) for a in case.raw("alphas")])
  qhat = cip.threshold(score, config["alpha"])
  case.compare("qhat", qhat)
  asked, true = case.raw("posteriors"), case.raw("labels")
  sets = cip.prediction_set(asked, qhat)
  case.compare("pred_sets", sets)
  case.compare("set_sizes", sets.sum(-1))
  case.compare("covered", sets[:, np.arange(len(true)), true])
  value, entropy = cip.bound(sets, true, config["alpha"]), cip.expected_entropy(
      asked, clamp=config["entropy_clamp"])
  case.compare("bound", value, tolerance=2e-6)  # the official code computes in float32
  case.compare("entropy_emp", entropy, tolerance=2e-6)
  case.compare("best_query", cip.choose(value))
  case.compare("best_query_entropy", cip.choose(entropy))


def play(attributes, truth, steps, config, thresholds=None):
  """(queries, posteriors, first values) of one game; thresholds by history length, or entropies."""
  classes, count = attributes.shape
  posterior = lambda q, a: cip.naive_posterior(attributes, q, a, flip=config["flip"],
                                               sharpness=config["overconfidence"])
  asked, beliefs, first = [], [posterior([], np.zeros(0))], None
  for step in range(steps):
    value = np.full(count, np.inf)
    for q in (q for q in range(count) if q not in asked):
      known = attributes[truth, asked]
      after = np.stack([posterior([*asked, q], np.append(known, attributes[y, q]))
                        for y in range(classes)])[None]
      if thresholds is None:
        value[q] = cip.expected_entropy(after)[0]
      else:
        sets = cip.prediction_set(after, thresholds[step])
        value[q] = cip.bound(sets, np.arange(classes), config["alpha"])[0]
    first = value if first is None else first
    asked.append(cip.choose(value, slack=1e-6))
    beliefs.append(posterior(asked, attributes[truth, asked]))
  return asked, np.stack(beliefs), first


def _game(case):
  config, attributes = case.config, case.raw("attributes")
  config.expect(Q=attributes.shape[1], C=len(attributes), steps=case.raw("cip_queries").shape[1],
                selection=SELECTION)
  config.ignore("the thresholds that came of it are given", "n_cal")
  for name, thresholds in (("cip", case.raw("qhat_by_length")), ("ip", None)):
    games = [play(attributes, y, config["steps"], config, thresholds) for y in range(config["C"])]
    case.compare(f"{name}_queries", np.stack([g[0] for g in games]))
    beliefs = np.stack([g[1] for g in games])
    case.compare(f"{name}_posteriors", beliefs)
    right = beliefs.argmax(-1) == np.arange(config["C"])[:, None]
    case.compare(f"{name}_acc", right.mean(0))
    case.compare("cip_first_bounds" if name == "cip" else "ip_first_entropies", games[0][2],
                 tolerance=2e-6)


def golden(case):
  (_game if "attributes" in case else _functions)(case)


def test_the_textbook_rank_covers_and_says_when_it_cannot():
  rng = np.random.default_rng(0)
  covered = []
  for _ in range(2000):
    score = rng.random(41)
    covered.append(score[-1] <= cip.threshold(score[:-1], 0.1, rank="split"))
  assert 0.9 - 0.02 < np.mean(covered) < 0.9 + 1 / 41 + 0.02
  assert cip.threshold(rng.random(5), 0.1, rank="split") == np.inf


def test_the_bound_is_above_the_entropy_it_bounds():
  """Calibrated posteriors: labels drawn from them."""
  rng = np.random.default_rng(1)
  p = rng.dirichlet(np.full(8, 0.3), 4000)
  labels = np.asarray([rng.choice(8, p=row) for row in p])
  qhat = cip.threshold(cip.scores(p[:2000], labels[:2000]), 0.1)
  value = cip.bound(cip.prediction_set(p[None, 2000:], qhat), labels[2000:], 0.1)[0]
  assert value > cip.expected_entropy(p[None, 2000:])[0]


def test_the_tolerance_of_a_set_is_a_share_of_its_threshold():
  """Equal stays in, at any size of the threshold; what is smaller by orders of magnitude stays out.
  """
  p = np.asarray([1 - 3e-8, 1e-8, 1e-8, 1e-8])
  assert cip.prediction_set(p, -5e-8).tolist() == [True, False, False, False]
  value = cip.bound(cip.prediction_set(p, -5e-8)[None, None], np.asarray([0]), 0.1)
  assert abs(value[0] - 0.469) < 1e-3
  attributes = np.asarray([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
  sure = cip.naive_posterior(attributes, [0, 1, 2, 3], np.zeros(4), flip=0.01, sharpness=3.0)
  assert cip.prediction_set(sure, -sure[1]).tolist() == [True, True, True, False]
  for size in (1.0, 0.3, 1e-5, 1e-12, 1e-30):
    for low, inside in ((size, True), (size * (1 - 1e-7), True), (size * 0.999, False)):
      assert cip.prediction_set(np.asarray([low]), -size)[0] == inside, (size, low)
      assert cip.prediction_set(np.float32([low]), -float(np.float32(size)))[0] == inside
  assert cip.prediction_set(p, np.inf).all() and cip.prediction_set(p, 0.0).all()


def test_posteriors_and_statistics_of_nothing_are_finite():
  rng = np.random.default_rng(0)
  attributes = rng.integers(0, 2, (8, 400))
  sure = cip.naive_posterior(attributes, list(range(400)), attributes[3], flip=0.01, sharpness=5.0)
  assert sure[3] == 1.0 and sure.sum() == 1.0  # every likelihood underflows
  with pytest.raises(ValueError, match="no class has the answers"):
    cip.naive_posterior(np.zeros((2, 1), int), [0], np.asarray([1]), flip=0.0)
  assert cip.threshold(np.zeros(0), 0.1) == cip.threshold(np.zeros(0), 0.1, rank="split") == np.inf
  none = np.zeros((3, 0, 4))
  np.testing.assert_array_equal(cip.expected_entropy(none), np.zeros(3))
  assert np.isfinite(cip.bound(none > 0, np.zeros(0, int), 0.1)).all()
  sets = rng.random((2, 5, 4)) < 0.5
  labels = rng.integers(0, 4, 5)
  np.testing.assert_array_equal(cip.bound(sets.astype(int), labels, 0.1),
                                cip.bound(sets, labels, 0.1))
