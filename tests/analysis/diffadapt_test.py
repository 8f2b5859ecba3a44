"""DiffAdapt: golden parity, order of the tests, the oracle."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import vocab
from entrolab.analysis import diffadapt
from entrolab.ranks import masked_mean


def golden(case):
  config = case.config
  logits = case["sample_logits"]
  questions, samples, width, entries = logits.shape
  config.expect(
      B=questions, n_samples=samples, T=width, V=entries, D=case.raw("hidden").shape[1],
      hidden=len(case.raw("W1")), classes=["Easy", "Normal", "Hard"],
      budget_rule="floor(fraction*max_len)", rule_order="Normal test first, then Hard, else Easy",
      seq_entropy="token mean per sample, then mean over samples")
  on = jnp.arange(logits.shape[2])[None, None] < case["sample_lengths"][..., None]
  flat = lambda x: x.reshape(-1, x.shape[-1])
  h = masked_mean(flat(vocab.entropy(logits)), flat(on), axis=1).reshape(on.shape[:2])
  case.compare("sample_entropy", h)
  case.compare("entropy", h.mean(1))
  accuracy = case["correct"].mean(1, dtype=float)
  case.compare("accuracy", accuracy)
  label = diffadapt.labels(h.mean(1), accuracy, **{k: config[k] for k in ("alpha", "beta",
                                                                        "gamma")})
  case.compare("labels", label)
  names = ("W1", "b1", "W2", "b2")
  weights = tuple(case[name] for name in names)
  scores = lambda w: diffadapt.probe_logits(case["hidden"], *w)
  case.compare("probe_logits", scores(weights))
  case.compare("probs", jax.nn.softmax(scores(weights)))
  pred = scores(weights).argmax(1)
  case.compare("pred", pred)
  loss, grads = jax.value_and_grad(lambda w: diffadapt.probe_loss(scores(w), label))(weights)
  case.compare("loss", loss)
  for name, grad in zip(names, grads, strict=True):
    case.compare(f"grad_{name}", grad)
  temperature, budget = diffadapt.decide(pred, config["max_len"])
  case.compare("chosen_temperature", temperature)
  case.compare("chosen_max_tokens", budget)


def test_normal_is_tested_first():
  label = diffadapt.labels(jnp.asarray([0.5, 2.0, 2.0, 0.5]), jnp.asarray([0.4, 0.4, 0.9, 0.1]),
                           alpha=0.3, beta=1.0, gamma=0.5)
  np.testing.assert_array_equal(label, [diffadapt.NORMAL, diffadapt.HARD, diffadapt.EASY,
                                        diffadapt.HARD])


def test_the_oracle_pays_least_for_a_right_answer():
  right = np.asarray([[True, True, False], [False, True, False], [False, False, False]])
  cost = np.asarray([[3.0, 9.0, 1.0]] * 3)
  np.testing.assert_array_equal(diffadapt.cheapest_right(right, cost), [0, 1, 2])
  np.testing.assert_array_equal(diffadapt.cheapest_right(right.astype(np.int32), cost), [0, 1, 2])
  assert float(diffadapt.probe_loss(jnp.zeros((0, 3)), jnp.zeros(0, int))) == 0.0
