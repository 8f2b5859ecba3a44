"""Asymptotics of alignment: golden parity, frontiers and bounds."""

import numpy as np
import pytest

from entrolab.analysis import align_asymptotics as aa


def golden(case):
  config, p, r = case.config, case.raw("p"), case.raw("r")
  config.expect(V=len(p), units="nats", N_rule="floor(exp(m*delta))",
                best_of_n_ties="uniform among the tied samples")
  tilts = [aa.tilt(p, r, w) for w in case.raw("omegas")]
  entropy = lambda q: -(q[q > 0] * np.log(q[q > 0])).sum()
  case.compare("tilted", np.stack(tilts))
  case.compare("tilted_reward", [(q * r).sum() for q in tilts])
  case.compare("tilted_kl", [aa.kl(q, p) for q in tilts])
  case.compare("tilted_entropy", [entropy(q) for q in tilts])
  case.compare("log_partition", [aa.log_partition(p, r, w) for w in case.raw("omegas")])
  weights = [aa.weight_of_kl(p, r, d) for d in case.raw("deltas")]
  case.compare("omega_of_delta", weights)
  case.compare("phi_of_delta", np.stack([aa.tilt(p, r, w) for w in weights]))
  case.compare("reward_of_delta", [(aa.tilt(p, r, w) * r).sum() for w in weights])
  best = [aa.best_of(p, r, int(n)) for n in case.raw("Ns")]
  spent = [aa.kl(q, p) for q in best]
  same = [aa.tilt(p, r, aa.weight_of_kl(p, r, k)) for k in spent]
  case.compare("bon_pmf", np.stack(best))
  case.compare("bon_reward", [(q * r).sum() for q in best])
  case.compare("bon_kl", spent)
  case.compare("bon_kl_bound", [aa.best_of_kl_bound(int(n)) for n in case.raw("Ns")])
  case.compare("kl_bon_to_tilted", [aa.kl(b, t) for b, t in zip(best, same, strict=True)])
  case.compare("reward_tilted_same_kl", [(q * r).sum() for q in same])
  w = aa.weight_of_kl(p, r, config["delta"])
  case.compare("memoryless_omega", w)
  case.compare("memoryless_phi", aa.tilt(p, r, w))
  case.compare("memoryless_reward", (aa.tilt(p, r, w) * r).sum())
  table = case.raw("memoryless_table")
  case.compare("memoryless_table",
               [aa.memoryless(p, r, int(row[0]), config["delta"]) for row in table])
  case.compare("rate_value", [aa.rate(p, r, w, t) for t in case.raw("rate_theta")])


def setting(seed=0, outcomes=9):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.ones(outcomes)), np.round(rng.normal(size=outcomes), 2)


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_of_the_same_kl_earns_more_than_the_tilt(seed):
  p, r = setting(seed)
  rng = np.random.default_rng(seed)
  for _ in range(100):
    q = rng.dirichlet(np.ones(len(p)))
    w = aa.weight_of_kl(p, r, aa.kl(q, p))
    assert (q * r).sum() <= (aa.tilt(p, r, w) * r).sum() + 1e-9


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_best_of_n_is_a_distribution_within_its_bound(n):
  p, r = setting()
  q = aa.best_of(p, r, n)
  assert q.sum() == pytest.approx(1.0) and aa.kl(q, p) <= aa.best_of_kl_bound(n) + 1e-12
  assert (q * r).sum() >= (p * r).sum() - 1e-12


def test_best_of_n_approaches_the_tilt_with_length():
  p, r = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.0, 1.0, 2.0])
  gaps = [aa.memoryless(p, r, m, 0.3)[4] for m in (2, 8, 32)]
  assert gaps[0] > gaps[1] > gaps[2] > 0.0


def test_targets_out_of_reach_are_refused():
  with pytest.raises(ValueError, match="target=3.0"):
    aa.weight_of_reward(np.asarray([0.5, 0.5]), np.asarray([0.0, 1.0]), 3.0)


def test_tolerances_are_shares():
  """Rewards and divergences of any size, and outcomes that never occur."""
  p, r = np.asarray([1 - 1e-13, 1e-13]), np.asarray([1.0, 0.0])
  assert aa.weight_of_kl(p, r, aa.tilt_kl(p, r, np.inf)) == np.inf
  assert np.isfinite(aa.weight_of_kl(p, r, 0.5 * aa.tilt_kl(p, r, np.inf)))
  p, r = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.0, 0.1, 0.3])
  for size in (1e-15, 1.0, 1e12):
    values, law = aa.sum_law(p, size * r, 3)
    np.testing.assert_allclose(values, size * aa.sum_law(p, r, 3)[0], rtol=1e-9)
    assert len(law) == 9  # 0.1 x 3 and 0.3 are one outcome
  assert aa.sum_law(p, 0.0 * r, 2)[0].tolist() == [0.0]
  never = np.asarray([0.5, 0.5, 0.0])
  np.testing.assert_allclose(aa.best_of(never, r, 2), [0.25, 0.75, 0.0])
  np.testing.assert_array_equal(aa.tilt(never, r, np.inf), [0.0, 1.0, 0.0])
