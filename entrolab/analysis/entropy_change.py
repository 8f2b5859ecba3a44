"""A theory of the change of entropy beside the measured one: a token moves its own state alone.

The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models (arXiv:2505.22617,
2025), one-step theory for a softmax policy: a sampled token a with weight w = ratio * advantage
moves its logits by dz_v = eta w (1[v = a] - pi_v), hence

    dH = -eta w [ pi_a (log pi_a + H) - sum_v pi_v^2 (log pi_v + H) ]   + O(eta^2).

A network has no single eta. It follows from how the log-probs of the sampled tokens moved in the
same step, d log pi_a = eta w (1 - 2 pi_a + sum_v pi_v^2). So the change is in nats, and has nothing
in common with the measured one but the tokens. It is a hypothesis that a run tests, not a
prediction: parameters are shared, and most of a change reaches a state through the updates of other
tokens. What did change the entropy is the account of `entrolab.ledger`.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float


@checked
def one_sample_change(weight: Float[Array, "B T"], logp: Float[Array, "B T"],
                      entropy: Float[Array, "B T"], sum_p2: Float[Array, "B T"],
                      sum_p2_logp: Float[Array, "B T"]) -> Float[Array, "B T"]:
  """dH / eta at the state of every token: nats per unit of logit step.

  weight: ratio * advantage of the sampled token; the other four at the policy before the step.
  """
  of_token = jnp.exp(logp) * (logp + entropy)
  return -weight * (of_token - (sum_p2_logp + entropy * sum_p2))


@checked
def one_sample_push(weight: Float[Array, "B T"], logp: Float[Array, "B T"],
                    sum_p2: Float[Array, "B T"]) -> Float[Array, "B T"]:
  """d log pi(a) / eta of every sampled token: weight * (1 - 2 pi_a + sum pi^2)."""
  return weight * (1.0 - 2.0 * jnp.exp(logp) + sum_p2)


@checked
def account(before: dict[str, Array], after: dict[str, Array], weight: Float[Array, "B T"],
            mask: Bool[Array, "B T"]) -> dict[str, Array]:
  """Metrics of one step on the same states, token means over the mask.

  before: logp, entropy, sum_p2, sum_p2_logp; after: logp, entropy.
  entropy/measured: H after less H before, nats. theory/logit_step: eta by least squares of the
  moved log-probs. theory/covariance: eta times the one-sample formula, nats.
  """
  columns = [before[k] for k in ("logp", "entropy", "sum_p2", "sum_p2_logp")]
  push = jnp.where(mask, one_sample_push(weight, before["logp"], before["sum_p2"]), 0.0)
  moved = jnp.where(mask, after["logp"] - before["logp"], 0.0)
  square = jnp.square(push).sum()
  step = jnp.where(square > 0.0, (push * moved).sum() / jnp.where(square > 0.0, square, 1.0), 0.0)
  return {"entropy/measured": masked_mean(after["entropy"] - before["entropy"], mask),
          "theory/covariance": step * masked_mean(one_sample_change(weight, *columns), mask),
          "theory/logit_step": step}
