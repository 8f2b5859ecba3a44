"""The update of a policy as a pure function of (state, batch), sharded over a mesh.

`Learner` has the jitted functions of a run. They close over everything static: objective, model
configuration, optimiser and mesh. All that changes is in `State`; metrics of a rollout are in
`trainer.metrics`, the loop around an update is in `trainer.step`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from entrolab import control as controls
from entrolab import keys, microbatch, sharding, vocab
from entrolab.batch import Batch
from entrolab.experiment import Experiment, Reference
from entrolab.models import parameters, transformer
from entrolab.models.transformer import Params
from entrolab.ranks import masked_mean
from entrolab.tangents import tangents
from entrolab.trainer import metrics, optimiser, packing
from entrolab.trainer.state import State, not_finite
from entrolab.typing import Array, Bool, Int

# statistics that a measurement of the entropy change needs: of the policy before its updates, and
# of the policy that they made
BEFORE = ("entropy", "logp", "nucleus_entropy", "sum_p2", "sum_p2_logp")
AFTER = ("entropy", "logp")


class Learner:
  """The jitted functions of a run; `step` is compiled once a shape and donates its state."""

  def __init__(self, experiment: Experiment, config: transformer.Config, mesh: Mesh):
    self.experiment = experiment
    self.objective = experiment.objective
    self.mesh = mesh
    training = experiment.training
    # rows over data and fsdp, heads and vocabulary over tensor; one device needs no placement
    self.layout = None if mesh.size == 1 else vocab.Layout(mesh, ("data", "fsdp"), "tensor", "fsdp")
    self.config = dataclasses.replace(config, dtype=training.dtype, remat=training.remat,
                                      layout=self.layout)
    self.rate = optimiser.rate(training.lr, warmup=training.warmup, schedule=training.schedule,
                               steps=training.steps * training.updates)
    self.tx = optimiser.adamw(self.rate, b1=training.b1, b2=training.b2, eps=training.eps,
                              weight_decay=training.weight_decay, clip_norm=training.clip_norm)
    self.on_policy = on_policy(experiment)
    self.reads_reference = "ref_logp" in self.objective.reads
    self.param_shardings = placed_as(mesh, parameters.specs(self.config))

    # parameters as the sampler reads them, for evaluations and for rollouts; an evaluation is of
    # the policy itself, whatever the weights of the rollouts
    self.serve = self._served(int8=False)
    int8 = experiment.sampling.weights == "int8"
    self.serve_rollouts = self._served(int8=True) if int8 else self.serve

    self.step = jax.jit(self._step, donate_argnums=0)
    self.faults = jax.jit(self._faults)
    self.forward = jax.jit(self._forward, static_argnums=2)
    self.begin_control = jax.jit(self._begin_control)
    self.prepare = jax.jit(self._prepare)
    self.select = jax.jit(self._select)
    self.lengths = jax.jit(_lengths, out_shardings=sharding.whole(mesh))

  # ---- Parameters and state --------------------------------------------------------------------

  def init(self, params: Params) -> State:
    """The state at step 0, placed on the mesh."""
    params = jax.tree.map(sharding.put, params, self.param_shardings)
    # a copy, since `step` donates the parameters and the reference outlives them
    copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=self.param_shardings)
    state = State(step=jnp.zeros((), jnp.int32), params=params, opt=self.tx.init(params),
                  # copies: a controller may begin with one array under two names, and no buffer
                  # can be donated twice
                  control=jax.tree.map(jnp.copy, controls.init(self.objective.control)),
                  reference=copy(params) if self.reads_reference else None)
    on_every_device = sharding.whole(self.mesh)
    return jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else sharding.put(x, on_every_device),
        state)

  def _served(self, int8: bool) -> Callable[[Params], Params]:
    """A jitted function that gathers parameters over fsdp, once a rollout: otherwise every token
    that is sampled would gather them, layer by layer."""
    gathered = placed_as(self.mesh, parameters.specs(self.config, int8), without="fsdp")
    return jax.jit(partial(transformer.serving, self.config, int8=int8), out_shardings=gathered)

  # ---- A rollout, before its updates -----------------------------------------------------------

  def needs_forward(self, batch: Batch, measured: bool) -> bool:
    """Whether a forward pass over the rollout must precede its updates: to measure the change of
    entropy, or because neither its only update nor the columns of the sampler give `old_logp`."""
    if measured or batch.old_logp is None:
      return True
    # responses that were drawn one step ahead are of an older policy than the one before the update
    of_this_policy = not self.experiment.sampling.ahead
    sampler_suffices = self.experiment.training.old_logp == "sampler" and of_this_policy
    return not (self.on_policy or sampler_suffices)

  def plan(self, batch: Batch, parts: int) -> tuple[packing.Plan | None, float]:
    """(where rows lie in bins, for `parts` parts; padded share of all positions).

    The plan is None without `training.packing`. Waits until the rows of the batch are there, since
    their lengths decide the plan on the host.
    """
    tokens, counted = np.asarray(self.lengths(batch))
    max_tokens = batch.tokens.shape[1]
    length = batch.prompt.shape[1] + max_tokens
    if not self.experiment.training.packing:
      return None, packing.padded_share(tokens, len(tokens) * length)
    ways = sharding.row_devices(self.mesh)
    c = self.config
    plan = packing.make(
        tokens, counted, length=length, max_tokens=max_tokens, ways=ways, parts=parts,
        # floats that are stored of a layer for one attended position (logit and weight of every
        # head), over those that are stored for the position itself
        attention=2.0 * c.heads / (8.0 * c.width + 3.0 * c.mlp_width),
        balanced=self.objective.scope == "batch")
    padding = packing.padded_share(tokens, ways * parts * plan.bins * plan.width)
    on_rows = sharding.rows(self.mesh)
    return dataclasses.replace(plan, start=sharding.put(plan.start, on_rows),
                               order=sharding.put(plan.order, on_rows)), padding

  def _forward(self, params: Params, batch: Batch, names: tuple[str, ...],
               plan: packing.Plan | None = None) -> dict[str, Array]:
    """Statistics `names` [B, T] of a whole rollout, in as many parts as its updates take."""
    spec = dataclasses.replace(self.objective.vocab, names=names)
    training = self.experiment.training
    batch, order = packing.with_start(batch, plan)
    parts = microbatch.split(batch, training.micro * training.updates, order)
    return microbatch.merge(jax.lax.map(
        lambda rows: self.statistics(params, rows, spec, plan), parts), order)

  def _prepare(self, batch: Batch, state: State) -> Batch:
    """Rewards and advantages of a whole rollout."""
    batch = self.objective.prepare(self.with_noise(batch, state.step), state.control)
    return batch.replace(noise=None)  # every update draws new noise

  def _begin_control(self, state: State, batch: Batch, plan: packing.Plan | None = None) -> State:
    """Lets controllers measure the first rollout at the initial policy, before any update."""
    live = self._forward(state.params, batch, self.objective.statistics.names, plan)
    batch = self.with_noise(batch, state.step)
    scored = self.objective.score({**batch.columns(), **state.control, **live})
    control = controls.begin(self.objective.control, state.control, self.objective.means(scored))
    return dataclasses.replace(state, control=control)

  def with_noise(self, batch: Batch, step: Int[Array, ""]) -> Batch:
    """With the uniform numbers that break ties of rankings, where a term reads them."""
    if "noise" not in self.objective.reads:
      return batch
    return batch.replace(noise=keys.tie_noise(batch.row, step, batch.tokens.shape[1]))

  # ---- One update ------------------------------------------------------------------------------

  def _select(self, batch: Batch, update: Array, replayed: Batch | None = None) -> Batch:
    """Rows of one update: every `updates`-th prompt of the step's list with its whole group; the
    same share of the replayed rows follows them.

    Devices keep their rows where each of them has the prompts of whole updates; elsewhere rows
    change devices, and never their update.
    """
    updates = self.experiment.training.updates
    samples = self.experiment.sampling.samples

    def of_update(x):
      groups = x.reshape(-1, updates, samples, *x.shape[1:])
      return groups[:, update].reshape(-1, *x.shape[1:])

    selected = jax.tree.map(of_update, batch)
    if replayed is not None:
      selected = jax.tree.map(lambda new, old: jnp.concatenate([new, of_update(old)]), selected,
                              replayed)
    on_rows = sharding.rows(self.mesh)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), selected)

  def _step(self, state: State, batch: Batch, plan: packing.Plan | None = None
            ) -> tuple[State, dict[str, Array]]:
    """(state, batch) -> (state, metrics): gradient, optimiser, controllers, reference.

    An update is not applied where its loss, gradient norm or entropy, or the parameters, moments or
    controlled values that it would make, are not finite: nothing of the state moves, and
    train/applied is 0. Nothing moves either where no row is known: there is nothing to learn from.
    """
    grads, shown = self._measured(state, batch, plan)
    updates, opt = self.tx.update(grads, state.opt, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    new = State(state.step + 1, params, opt,
                controls.update(self.objective.control, state.control, shown),
                next_reference(self.experiment.reference, self.experiment.training.updates,
                               state, params))
    finite = ~jnp.stack(list(self._flags(state, grads, shown).values())).any()
    moves = finite & batch.counted.any()
    new = jax.tree.map(lambda after, before: jnp.where(moves, after, before), new, state)
    shown["train/applied"] = finite.astype(jnp.float32)
    shown.update({f"control/{name}": x for name, x in new.control.items() if x.ndim == 0})
    return new, shown

  def _faults(self, state: State, batch: Batch, plan: packing.Plan | None = None
              ) -> dict[str, Array]:
    """Of an update that was not applied: whether loss, gradient, entropy, each leaf of the
    parameters and moments that it would make, and each controlled value are not finite."""
    return self._flags(state, *self._measured(state, batch, plan))

  def _measured(self, state: State, batch: Batch, plan: packing.Plan | None
                ) -> tuple[Params, dict[str, Array]]:
    """(gradient, metrics) of an update."""
    batch = self.with_noise(batch, state.step)
    grads, shown, live, scored = self.gradient(state.params, batch, state.control, plan)
    # replayed rows are of earlier policies; the entropy of a step is that of its new rows
    replayed = batch.extra.get("replayed", jnp.zeros(1, bool))
    entropy = masked_mean(live["entropy"], batch.counted & ~replayed[:, None])
    shown = {**shown, "train/grad_norm": optax.tree.norm(grads), "entropy/exact": entropy,
             "method/tokens_changed": self.objective.tokens_changed(scored, batch)}
    if self.on_policy and batch.old_logp is not None:
      # no forward pass came before: this update is the first to compute what the sampler reported
      shown |= metrics.logp_difference(live["logp"], batch.old_logp, batch.mask)
    return grads, shown

  def _flags(self, state: State, grads: Params, shown: dict[str, Array]) -> dict[str, Array]:
    """Whether what an update is made of, and what it would make, are not finite, by name."""
    # the optimiser's arithmetic once more, of which nothing but the flags is stored: the new state
    # itself can then be selected where the old one lies, without a second copy of it
    grads, opt, params = jax.lax.optimization_barrier((grads, state.opt, state.params))
    updates, opt = self.tx.update(grads, opt, params)
    made = {"parameters": optax.apply_updates(params, updates), "moments": opt}
    control = controls.update(self.objective.control, state.control, shown)
    # a controlled value may be NaN until it is first measured
    lost = lambda name, x: (~jnp.isfinite(x) & jnp.isfinite(state.control[name])).any()
    spoilt = {f"controlled value {name}": lost(name, x) for name, x in control.items()}
    return {"loss": ~jnp.isfinite(shown["train/loss"]),
            "gradient": ~jnp.isfinite(shown["train/grad_norm"]),
            "entropy": ~jnp.isfinite(shown["entropy/exact"]),
            **{f"new {name}": flag for name, flag in not_finite(made).items()}, **spoilt}

  def gradient(self, params: Params, batch: Batch, control: controls.State,
               plan: packing.Plan | None = None) -> microbatch.Gradient:
    """`microbatch.gradient` of an optimiser batch, packed where there is a plan."""
    batch, order = packing.with_start(batch, plan)
    spec = self.objective.statistics

    # `microbatch.gradient` calls this once a part: parameters and the rows of the part go in, their
    # statistics [B / M, T] come out, and the gradient flows back through them
    def statistics(params, rows):
      live = self.statistics(params, rows, spec, plan)
      if not self.on_policy:
        return live
      # the old policy is the one of this very update: its columns are the live ones without their
      # gradient, and the ratio is 1 with the gradient of the log-prob
      return {**live, "old_logp": jax.lax.stop_gradient(live["logp"]),
              "old_entropy": jax.lax.stop_gradient(live["entropy"])}

    return microbatch.gradient(self.objective, statistics, params, batch, control,
                               micro=self.experiment.training.micro, order=order)

  def statistics(self, params: Params, rows: Batch, spec: vocab.Spec,
                 plan: packing.Plan | None = None) -> dict[str, Array]:
    """The statistics of `spec`, [B, T] of the response tokens, from hidden states and the head.

    plan: rows lie in its bins, each from where the column packing.START says.
    """
    laid = _laid(rows, plan)
    hidden = self.predicting(params, rows, laid)
    tokens = rows.tokens if laid is None else laid.target
    stats = vocab.fused(hidden, transformer.head_matrix(params), tokens, spec, self.layout)
    return stats if laid is None else packing.columns(laid, rows.mask, stats)

  def statistics_along(self, params: Params, direction: Params, rows: Batch, spec: vocab.Spec,
                       plan: packing.Plan | None = None
                       ) -> tuple[dict[str, Array], dict[str, Array]]:
    """(`statistics`, their derivatives along `direction`, a tree like params), [B, T] by name."""
    laid = _laid(rows, plan)
    inputs = lambda p: (self.predicting(p, rows, laid), transformer.head_matrix(p))
    (hidden, head), (d_hidden, d_head) = jax.jvp(inputs, (params,), (direction,))
    tokens = rows.tokens if laid is None else laid.target
    found = tangents(hidden, d_hidden, head, d_head, tokens, spec, self.layout)
    if laid is None:
      return found
    stats, moved = (packing.columns(laid, rows.mask, listed) for listed in found)
    return stats, moved

  def predicting(self, params: Params, rows: Batch, laid: packing.Laid | None) -> Array:
    """Hidden states [B, T, D] that predict the response tokens; those of the list of `laid`, where
    rows lie in bins, on which alone the vocabulary is then evaluated."""
    if laid is not None:
      return packing.states(laid, transformer.hidden_states(
          self.config, params, laid.tokens, laid.positions, laid.segment_ids))
    tokens = jnp.concatenate([rows.prompt, rows.tokens], axis=1)
    valid = _in_context(rows)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    hidden = transformer.hidden_states(self.config, params, tokens, positions,
                                       valid.astype(jnp.int32))
    # position i predicts token i + 1: the last prompt position predicts the first response token
    return hidden[:, rows.prompt.shape[1] - 1:-1]


# ---- What it is built from ---------------------------------------------------------------------

def on_policy(experiment: Experiment) -> bool:
  """Whether old_logp and old_entropy are the statistics of the very update that reads them.

  So it is where the update is the only one of its rollout and `Objective.score` needs no forward
  pass before it. Not where a forward pass over the rollout is made at every step anyway, where a
  reward or an advantage reads them before the update, nor where some rows are of other steps.
  """
  t = experiment.training
  objective = experiment.objective
  read_before = {name for slot, term in objective.terms() if slot in ("reward", "advantage")
                 for name in term.reads}
  others = experiment.rollout.further_rows(experiment.sampling.samples, t.updates, t.micro)
  one_piece = t.updates == 1 and (t.micro == 1 or objective.scope == "micro")
  new_rows_alone = not experiment.sampling.ahead and others == 0
  return (t.old_logp == "trainer" and t.measure_every != 1 and one_piece and new_rows_alone
          and not read_before & {"old_logp", "old_entropy"})


def next_reference(rule: Reference, updates: int, state: State, params: Params) -> Params | None:
  """The reference policy after an update that made `params` of the state; updates: a rollout."""
  if state.reference is None or rule.rule == "frozen":
    return state.reference
  if rule.rule == "ema":
    return jax.tree.map(lambda r, p: rule.decay * r + (1.0 - rule.decay) * p,
                        state.reference, params)
  # `every` counts rollouts, the state counts optimiser steps
  due = (state.step + 1) % (rule.every * updates) == 0
  return jax.tree.map(lambda r, p: jnp.where(due, p, r), state.reference, params)


def placed_as(mesh: Mesh, specs: Any, without: str | None = None) -> Any:
  """The shardings of a tree of PartitionSpecs, with one axis of the mesh left out of them."""
  def place(spec):
    axes = [None if axis == without else axis for axis in spec]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(place, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _in_context(rows: Batch) -> Bool[Array, "B S"]:
  """S = L + T: tokens that stand in the context of later ones, whether they count or not."""
  present = rows.mask if rows.present is None else rows.present
  return jnp.concatenate([rows.prompt_mask, present], axis=1)


def _laid(rows: Batch, plan: packing.Plan | None) -> packing.Laid | None:
  """Where the rows of a part lie in bins; None without a plan."""
  if plan is None:
    return None
  tokens = jnp.concatenate([rows.prompt, rows.tokens], axis=1)
  return packing.lay(plan, rows.extra[packing.START], tokens, _in_context(rows), rows.mask)


def _lengths(batch: Batch) -> Int[Array, "2 B"]:
  """Tokens of every row in all, and those of its response that count."""
  return jnp.stack([_in_context(batch).sum(1), batch.mask.sum(1)])
