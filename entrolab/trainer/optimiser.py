"""The optimiser of a run: AdamW behind a clip by the global norm, and its learning rate."""

import optax


def rate(lr: float, *, warmup: int, schedule: str, steps: int) -> optax.Schedule:
  """Optimiser steps before -> the learning rate: 0 to `lr` in `warmup` steps, then by schedule.

  steps: of the whole run. Raises ValueError for an unknown schedule.
  """
  after_warmup = max(steps, warmup + 1) - warmup
  schedules = {"constant": optax.constant_schedule(lr),
               "linear": optax.linear_schedule(lr, 0.0, after_warmup),
               "cosine": optax.cosine_decay_schedule(lr, after_warmup)}
  if schedule not in schedules:
    raise ValueError(f"training.schedule={schedule!r}; choices: {', '.join(schedules)}")
  after = schedules[schedule]
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup])


def adamw(schedule: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float,
          clip_norm: float) -> optax.GradientTransformation:
  """AdamW at a learning rate; clip_norm: of the whole gradient, 0: no clip."""
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  return optax.chain(clip, optax.adamw(schedule, b1=b1, b2=b2, eps=eps,
                                       weight_decay=weight_decay))
