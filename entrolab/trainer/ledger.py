"""The entropy ledger of a run: states to measure on, and the account of every update of a step.

Entropy is measured on responses of the present policy to held-out problems, which no gradient has
seen ("fresh"), and beside it on rows of the update itself ("own"). The states of an update's
rows share their noise with its gradient: the change on them is larger, as a training error is
smaller than a test error. Nothing here changes the run: states have keys of their own, and the
state is copied before a step donates it.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entrolab import control, keys, microbatch, sharding
from entrolab.batch import Batch
from entrolab.experiment import Experiment
from entrolab.ledger import account, adamw
from entrolab.ledger.locality import Locality, locality
from entrolab.models.transformer import Params
from entrolab.rollout.engine import Engine
from entrolab.statistics import Spec
from entrolab.tasks.task import Example
from entrolab.trainer import packing
from entrolab.trainer.learner import Learner
from entrolab.trainer.state import State
from entrolab.typing import Array, Float, Int

ENTROPY = Spec(names=("entropy",))


class Slope(NamedTuple):
  """The mean entropy on some states, and its gradient."""
  entropy: Float[Array, ""]  # nats a token
  gradient: Params


class Before(NamedTuple):
  """What an account reads of the state before an update, which the update donates."""
  step: Int[Array, ""]  # optimiser steps before it
  params: Params
  moment: optax.Params  # AdamW's mean gradient
  control: control.State


def due(experiment: Experiment, step: int) -> bool:
  """Whether the updates of a step are accounted for: the last of every `ledger.every` steps."""
  every = experiment.ledger.every
  return bool(every) and (step + 1) % every == 0


def fresh_states(engine: Engine, params: Params, problems: Sequence[Example], key: jax.Array,
                 step: int, experiment: Experiment) -> Batch:
  """Responses of the policy to held-out problems, as its rollouts draw them.

  params: as they are served for sampling. Every group of processes draws for its part of the first
  `sampling.prompts` problems; where there are fewer, they come again with other samples.
  """
  s = experiment.sampling
  samples = math.ceil(experiment.ledger.states / s.prompts)
  examples = [problems[i % len(problems)] for i in engine.groups.places(s.prompts)]
  sampling = dataclasses.replace(s, samples=samples, refills=0, ahead=0, slots=0)
  return engine.rollout(params, examples, keys.ledger(key), step, sampling).batch


@partial(jax.jit, static_argnums=(1, 2))
def thinned(rows: Batch, count: int, ways: int) -> Batch:
  """Every k-th row, with the largest k that leaves at least `count`; each of `ways` devices keeps
  as many of its own."""
  total = rows.tokens.shape[0]
  every = next(k for k in range(max(total // count, 1), 0, -1) if total // ways % k == 0)
  return jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:])[:, 0], rows)


class StepLedger:
  """The accounts of one step, update by update; `totals` are its metrics."""

  def __init__(self, ledger: "EntropyLedger", params: Params, states: Batch, key: jax.Array):
    self.ledger = ledger
    self.key = key  # of the probes of locality
    self.states = states
    self.start = ledger.slope(params, states)  # at the start of the next update
    self.fresh: list[dict[str, Array]] = []  # accounts, one an update
    self.own: list[dict[str, Array]] = []
    self.tables: list[tuple[Array, Array]] = []
    self.locality: dict[str, Array] = {}  # of the first update
    self.seconds = 0.0  # that the accounts took

  def add(self, before: Before, state: State, norm: Array, rows: Batch,
          plan: packing.Plan | None) -> None:
    """The account of the update from `before` to `state` by the gradient of `rows`.

    norm: of that gradient, before it was clipped.
    """
    jax.block_until_ready(state)  # what follows is not the time of the update
    began = time.perf_counter()
    ledger = self.ledger
    end = ledger.slope(state.params, self.states)
    thin = thinned(rows, self.states.tokens.shape[0],
                   sharding.row_devices(ledger.learner.mesh))
    own = ledger.slope(before.params, thin), ledger.slope(state.params, thin)
    accounts = ledger.account(before, state.opt, norm, rows, (self.start, end), plan)
    self.fresh.append(accounts[0])
    self.tables.append(accounts[1])
    if ledger.probes and not self.locality:
      self.locality = ledger.locality(before, state.opt, norm, rows, plan, self.key)._asdict()
    self.own.append(ledger.account(before, state.opt, norm, rows, own, plan)[0])
    self.start = end
    jax.block_until_ready(self.own[-1])
    self.seconds += time.perf_counter() - began

  def totals(self) -> dict[str, Any]:
    """ledger/NAME, summed over the updates; explained: 1 - sum |rest| / sum |measured|."""
    out: dict[str, Any] = {}
    for prefix, accounts in (("ledger/", self.fresh), ("ledger/own/", self.own)):
      rows = [{name: float(x) for name, x in entries.items()} for entries in accounts]
      for name in rows[0] if rows else ():
        out[prefix + name] = sum(row[name] for row in rows)
      if rows:
        moved = sum(abs(row["measured"]) for row in rows)
        left = sum(abs(row["rest"]) for row in rows)
        out[f"{prefix}explained"] = 1.0 - left / moved if moved else 1.0
    if self.tables:
      effect, tokens = (np.sum([np.asarray(t[i]) for t in self.tables], axis=0) for i in (0, 1))
      out |= {"ledger/table/effect": effect, "ledger/table/tokens": tokens}
    if self.locality:
      out |= {"ledger/locality": float(self.locality["share"]),
              "ledger/locality_error": float(self.locality["error"])}
    return out


class EntropyLedger:
  """The jitted functions of the ledger of a run."""

  def __init__(self, learner: Learner):
    # in float32 whatever the run trains in: a change of entropy is a small difference of two large
    # numbers, and what the rounding of bfloat16 did to a gradient belongs to the rest
    self.learner = copy.copy(learner)
    self.learner.config = dataclasses.replace(learner.config, dtype="float32")
    self.order = learner.experiment.ledger.order
    self.slope = jax.jit(self._slope)
    self.probes = learner.experiment.ledger.probes
    self.account = jax.jit(self._account)
    self.locality = jax.jit(self._locality)
    self.copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

  def open(self, params: Params, states: Batch, key: jax.Array) -> StepLedger:
    """The ledger of one step, at the policy before its updates; key: of the step."""
    return StepLedger(self, params, states, key)

  def before(self, state: State) -> Before:
    """A copy of what an account reads of a state that is about to be donated."""
    return self.copy(Before(state.step, state.params, adamw.moment(state.opt), state.control))

  def _slope(self, params: Params, states: Batch) -> Slope:
    """E and its gradient on the states, in parts as large as a micro-batch at most."""
    parts = microbatch.split(states, self._parts(states.tokens.shape[0]))
    count = jnp.maximum(states.mask.sum(), 1).astype(jnp.float32)

    def share(params, rows):  # of these rows in E
      entropy = self.learner.statistics(params, rows, self._spec())["entropy"]
      return jnp.where(rows.mask, entropy, 0.0).sum() / count

    def add_part(total, rows):
      return jax.tree.map(jnp.add, total, jax.value_and_grad(share)(params, rows)), None

    zero = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add_part, zero, parts)
    return Slope(*total)

  def _spec(self) -> Spec:
    return dataclasses.replace(self.learner.objective.vocab, names=ENTROPY.names)

  def _parts(self, rows: int) -> int:
    """The fewest parts of at most a micro-batch that divide over the devices that share rows."""
    e = self.learner.experiment
    most = e.sampling.prompts // e.training.updates * e.sampling.samples // e.training.micro
    ways = sharding.row_devices(self.learner.mesh)
    fits = [n for n in range(1, rows + 1)
            if rows % n == 0 and rows // n % ways == 0 and rows // n <= max(most, ways)]
    return fits[0]

  def _account(self, before: Before, opt: optax.OptState, norm: Array, rows: Batch,
               ends: tuple[Slope, Slope], plan: packing.Plan | None
               ) -> tuple[dict[str, Array], tuple[Array, Array]]:
    """(entries, table) of one update. ends: entropy and gradient before and after it."""
    made = self._made(opt, norm)
    start, end = ends
    slope = start.gradient
    if self.order == 2:
      slope = jax.tree.map(lambda a, b: (a + b) / 2.0, slope, end.gradient)
    rows = self.learner.with_noise(rows, before.step)
    along = account.direction(made, slope)
    of_tokens, live = self._effects(before, along, rows, plan)
    entries = account.entries(of_tokens, slope, made, before.moment, before.params,
                              end.entropy - start.entropy)
    return entries, account.table(of_tokens, rows, live)

  def _made(self, opt: optax.OptState, norm: Array) -> adamw.Step:
    """The update after which the optimiser's state is `opt`."""
    t = self.learner.experiment.training
    return adamw.step(opt, norm, schedule=self.learner.rate, b1=t.b1, b2=t.b2, eps=t.eps,
                      weight_decay=t.weight_decay, clip_norm=t.clip_norm)

  def _locality(self, before: Before, opt: optax.OptState, norm: Array, rows: Batch,
                plan: packing.Plan | None, key: jax.Array) -> Locality:
    """Of the update on its own rows; weights and scales stand still, as in its gradient."""
    learner, objective = self.learner, self.learner.objective
    micro = learner.experiment.training.micro
    rows, order = packing.with_start(learner.with_noise(rows, before.step), plan)
    spec = objective.statistics

    def columns(part, live):
      old = {"old_logp": live["logp"], "old_entropy": live["entropy"]}
      return {**part.columns(), **before.control, **live,
              **(jax.lax.stop_gradient(old) if learner.on_policy else {})}

    parts = microbatch.split(rows, micro, order)
    live = jax.lax.map(lambda part: learner.statistics(before.params, part, spec, plan), parts)
    scored = objective.score(columns(rows, microbatch.merge(live, order)))
    by_row = {name: x for name, x in scored.items() if x is not None and x.ndim}
    others = {name: x for name, x in scored.items() if name not in by_row}

    def per_token(params, part_and_scored):
      part, scored = part_and_scored
      live = learner.statistics(params, part, spec, plan)
      losses = objective.tokens(columns(part, live), {**others, **scored})
      return jnp.where(part.mask, live["entropy"], 0.0), jnp.stack(list(losses.values())).sum(0)

    return locality(per_token, before.params, (parts, microbatch.split(by_row, micro, order)),
                    self._made(opt, norm).preconditioner, key, self.probes)

  def _effects(self, before: Before, along: Params, rows: Batch, plan: packing.Plan | None
               ) -> tuple[account.Effects, dict[str, Array]]:
    """(effects of all tokens, their statistics before the update): the objective as the update has
    evaluated it, with as many micro-batches."""
    learner, objective = self.learner, self.learner.objective
    micro = learner.experiment.training.micro
    rows, order = packing.with_start(rows, plan)
    parts = microbatch.split(rows, micro, order)
    live, moved = jax.lax.map(
        lambda part: learner.statistics_along(before.params, along, part, objective.statistics,
                                              plan), parts)

    def of_part(part, live, moved, share):
      columns = {**part.columns(), **before.control}
      if learner.on_policy:  # the old policy is the one before this very update, and stands still
        columns |= {"old_logp": live["logp"], "old_entropy": live["entropy"]}
      return account.effects(objective, columns, live, moved, share=share)

    merge = partial(microbatch.merge, order=order)
    if micro > 1 and objective.scope == "micro":
      of_tokens = jax.lax.map(lambda xs: of_part(*xs, share=1.0 / micro), (parts, live, moved))
      return merge(of_tokens), merge(live)
    live, moved = merge(live), merge(moved)
    return of_part(rows, live, moved, share=1.0), live
