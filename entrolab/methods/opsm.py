"""OPSM: leave out responses of negative advantage that the policy has moved away from.

DeepSeek-V3.2, DeepSeek-AI (arXiv:2512.02556, 2025), off-policy sequence masking. Official code:
huggingface/trl, trl/trainer/grpo_trainer.py (off_policy_mask_threshold).
Acts on: weights.  State: none.
Differs from the official code: the policy is that at the start of the optimiser batch, theirs that
of each micro-batch: the same for one optimiser step. The denominator still counts the rows left
out, as theirs.
"""

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float, Weight, real


@checked
def keep_rows(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
              mask: Bool[Array, "B T"], *, threshold: float = 0.5) -> Weight:
  """0 where A < 0 and mean_t(old_logp - logp) of the row exceeds threshold (nats), 1 elsewhere.

  old_logp: the policy that sampled; with `sampled_logp` in its place the mismatch counts too.
  """
  drift = masked_mean(old_logp - logp, mask, axis=1)[:, None]
  return real((adv >= 0.0) | (drift <= threshold))
