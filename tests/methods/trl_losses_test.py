"""TRL's losses: the golden file of its GRPO trainer."""

import jax.numpy as jnp

from entrolab import aggregate
from entrolab.methods import bonus, cispo, grpo, gspo, highent_tokens, kl, lite_ppo, opsm, ppo, sapo
from entrolab.objective import Objective, Penalty, term
from tests import adapters

INF = float("inf")


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  rewards, eps = case["rewards"], config["adv_eps"]
  config.expect(std_ddof=1)
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  centred = adapters.per_group(case, grpo.centred_advantage, rewards)
  advs = dict(group=adapters.per_group(case, grpo.group_advantage, rewards, eps=eps), none=centred,
              batch=centred / (lite_ppo.deviation(rewards) + eps))
  if adapters.whole_groups(case):
    advs["batch"] = lite_ppo.batch_scaled(rewards, size=adapters.whole_groups(case), eps=eps)
  for kind, adv in advs.items():
    case.compare(f"adv_{kind}", adv)
  top = highent_tokens.quantile_mask(live["entropy"], mask, fraction=0.2)
  case.compare("top20_mask", top > 0, where=mask)
  for name, run in config["runs"].items():
    run.expect(advantage=tuple(advs))
    objective = _trl_objective(run, config)
    adv = jnp.where(mask, advs[run["advantage"]][:, None], 0.0)
    loss, grad = adapters.loss_and_grad(objective, case, logits, adv=adv)
    case.compare(f"loss_{name}", loss)
    case.compare(f"grad_{name}", grad)


def _trl_objective(run, config):
  """The objective of a run; what its kind of loss does not read stays unread, and fails."""
  scale = {"grpo": term(aggregate.row_mean), "sapo": term(aggregate.row_mean),
           "dr_grpo": term(aggregate.fixed_length, length=config["max_completion_length"]),
           **dict.fromkeys(("bnpo", "dapo", "cispo"), term(aggregate.token_mean))}
  run.expect(loss_type=tuple(scale), importance_sampling_level=("token", "sequence"))
  kind = run["loss_type"]
  if kind == "cispo":
    surrogate = term(cispo.capped_weight, cap=run["epsilon_high"])
  elif kind == "sapo":
    surrogate = term(sapo.soft_gate, limit=INF)
  else:
    low = run.get("epsilon_low", 0.2)
    bounds = dict(low=low, high=run.get("epsilon_high", low))
    if run.get("importance_sampling_level") == "sequence":
      surrogate = term(gspo.clipped_sequence, path="sequence", **bounds)
    else:  # TRL's delta bounds the ratio where A < 0, which is the dual clip
      surrogate = term(ppo.clipped_ratio, dual=run.get("args_delta", 0.0), limit=INF, **bounds)
  weights, penalties = [], []
  if "top_entropy_quantile" in run:
    weights.append(term(highent_tokens.quantile_mask, fraction=run["top_entropy_quantile"]))
  if "off_policy_mask_threshold" in run:
    weights.append(term(opsm.keep_rows, threshold=run["off_policy_mask_threshold"]))
  if run.get("beta"):
    penalties.append((run["beta"], term(kl.k3, limit=INF, cap=INF)))
  if run.get("_entropy_bonus_enabled"):
    penalties.append(Penalty(run["entropy_coef"], term(bonus.negative_entropy),
                             scale=term(aggregate.token_mean)))
  return Objective(surrogate=surrogate, aggregate=scale[kind], weights=tuple(weights),
                   penalties=tuple(penalties))
