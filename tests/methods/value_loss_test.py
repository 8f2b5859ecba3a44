"""The critic's loss, the overlong penalty and the adaptive KL coefficient: verl's golden file."""

import jax
import jax.numpy as jnp

from entrolab import aggregate
from entrolab.methods import dapo, gae, kl
from entrolab.ranks import masked_mean


def golden(case):
  mask, clip = case["response_mask"], 0.2  # the file's clip range, which it does not store
  old, target = case["old_values"], case["returns"]
  scale = aggregate.token_mean(mask)

  def loss(v):
    return (scale * jnp.where(mask, gae.clipped_value_loss(v, old, target, clip=clip), 0.0)).sum()

  value, grad = jax.value_and_grad(loss)(case["vpreds"])
  case.compare("vf_loss", value)
  case.compare("grad_vpreds", grad)
  clipped = gae.is_value_clipped(case["vpreds"], old, target, clip=clip)
  case.compare("vf_clipfrac", masked_mean(clipped.astype(float), mask))
  cfg, lengths = case.text("overlong_cfg"), case.raw("overlong_lengths")
  cfg.expect(applied="every response, incl. truncated at max_resp_len -> -1")
  rows = jnp.arange(max(lengths.max(), 1))[None] < jnp.asarray(lengths)[:, None]
  case.compare("overlong_penalty", dapo.overlong(
      jnp.zeros(len(lengths)), rows, max_tokens=cfg["max_resp_len"], buffer=cfg["buffer_len"],
      factor=cfg["penalty_factor"]))
  cfg = case.text("akl_cfg")
  control = kl.Adaptive(cfg["target"], start=cfg["init"], rows=cfg["n_steps"],
                        horizon=float(cfg["horizon"]))
  state, seen = control.init(), []
  for now in case["akl_inputs"]:
    state = control.update(state, {"term/kl.k3": now})
    seen.append(state["kl_coef"])
  case.compare("akl_values", jnp.stack(seen))
