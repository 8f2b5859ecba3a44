"""One optimiser step as a pure function of (state, batch), sharded over a mesh.

`Learner` closes over everything static (objective, model configuration, optimiser, mesh) and holds
the jitted functions; all that changes is in `State`, which is what a checkpoint holds.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from entrolab import control as controls
from entrolab import keys, microbatch, sharding, vocab
from entrolab.analysis import entropy_change
from entrolab.batch import Batch
from entrolab.experiment import Experiment, Training
from entrolab.models import parameters, transformer
from entrolab.ranks import masked_mean
from entrolab.trainer import packing
from entrolab.typing import Array

# what the account of a step needs: of the policy that sampled, and of the one it became
BEFORE = ("entropy", "logp", "nucleus_entropy", "sum_p2", "sum_p2_logp")
AFTER = ("entropy", "logp")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """All that changes from step to step: optimiser steps, parameters, optimiser, controlled
  values, and the reference policy where a term reads one; host: what the rollout's strategy keeps,
  here in a checkpoint alone."""
  step: Any
  params: Any
  opt: Any
  control: Any
  reference: Any = None
  host: Any = None


def optimiser(t: Training) -> optax.GradientTransformation:
  """AdamW with warm-up and a schedule over all optimiser steps; the clip is by global norm."""
  total = max(t.steps * t.updates, t.warmup + 1)
  rest = {"constant": optax.constant_schedule(t.lr),
          "linear": optax.linear_schedule(t.lr, 0.0, total - t.warmup),
          "cosine": optax.cosine_decay_schedule(t.lr, total - t.warmup)}
  if t.schedule not in rest:
    raise ValueError(f"training.schedule={t.schedule!r}; choices: {', '.join(rest)}")
  warm = optax.linear_schedule(0.0, t.lr, t.warmup)
  rate = optax.join_schedules([warm, rest[t.schedule]], [t.warmup]) if t.warmup else (
      rest[t.schedule])
  clip = optax.clip_by_global_norm(t.clip_norm) if t.clip_norm else optax.identity()
  return optax.chain(clip, optax.adamw(rate, b1=t.b1, b2=t.b2, eps=t.eps,
                                       weight_decay=t.weight_decay))


def _on_policy(experiment: Experiment) -> bool:
  """Whether old_logp and old_entropy are the statistics of the very update that reads them: it is
  the rollout's only one, and scored in one piece. Not where a pass over the rollout is made at
  every step anyway, nor where rows are of other steps."""
  t, objective = experiment.training, experiment.objective
  early = {name for slot, term in objective.terms() if slot in ("reward", "advantage")
           for name in term.reads}
  others = experiment.rollout.further_rows(experiment.sampling.samples, t.updates, t.micro)
  return (t.old_logp == "trainer" and t.updates == 1 and t.measure_every != 1
          and (t.micro == 1 or objective.scope == "micro") and not experiment.sampling.ahead
          and not early & {"old_logp", "old_entropy"} and others == 0)


def _valid(rows: Batch) -> Array:
  """[B, L + T] tokens that stand in the context."""
  present = rows.mask if rows.present is None else rows.present
  return jnp.concatenate([rows.prompt_mask, present], axis=1)


def _gap(logp: Array, sampler_logp: Array, mask: Array) -> dict[str, Array]:
  """How far trainer and sampler are apart, nats."""
  gap = jnp.where(mask, jnp.abs(logp - sampler_logp), 0.0)
  return {"rollout/logp_gap": gap.max(), "rollout/logp_gap_mean": masked_mean(gap, mask)}


def _placed(batch: Batch, plan: packing.Plan | None) -> tuple[Batch, Array | None]:
  """The batch with the column START, and the order in which it is split into parts."""
  return (batch, None) if plan is None else (batch.replace(**{packing.START: plan.start}),
                                             plan.order)


class Learner:
  """The jitted functions of a run; `step` is compiled once and donates its state."""

  def __init__(self, experiment: Experiment, config: transformer.Config, mesh: Mesh):
    self.experiment, self.objective, self.mesh = experiment, experiment.objective, mesh
    t = experiment.training
    alone = mesh.size == 1
    self.layout = None if alone else vocab.Layout(mesh, ("data", "fsdp"), "tensor", "fsdp")
    self.config = dataclasses.replace(config, dtype=t.dtype, remat=t.remat, layout=self.layout)
    self.tx = optimiser(t)
    self.on_policy = _on_policy(experiment)
    self.reads_reference = "ref_logp" in self.objective.reads
    placed = lambda specs, keep: jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(*(keep(axis) for axis in spec))), specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec))
    self.param_shardings = placed(parameters.specs(self.config), lambda axis: axis)

    def serve(int8):
      # for sampling: gathered once a rollout, where every token would gather them layer by layer
      whole = placed(parameters.specs(self.config, int8),
                     lambda axis: None if axis == "fsdp" else axis)
      return jax.jit(partial(transformer.serving, self.config, int8=int8), out_shardings=whole)

    self.serve = serve(False)
    int8 = experiment.sampling.weights == "int8"
    self.serve_rollouts = serve(True) if int8 else self.serve  # an evaluation is of the policy
    self.step = jax.jit(self._step, donate_argnums=0)
    self.score = jax.jit(self._score, static_argnums=2)
    self.begin = jax.jit(self._begin)
    self.prepare = jax.jit(self._prepare)
    self.observe = jax.jit(self._observe)
    self.account = jax.jit(self._account)
    self.select = jax.jit(self._select)
    self.lengths = jax.jit(self._lengths, out_shardings=sharding.whole(mesh))
    self.traces = 0  # of the step: one a shape of its plans, unless something recompiles
    self.shapes: set[Any] = set()  # that the step was traced for; None without a plan

  def init(self, params: Any) -> State:
    """The state at step 0, placed on the mesh."""
    params = jax.tree.map(sharding.put, params, self.param_shardings)
    copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=self.param_shardings)
    reference = copy(params) if self.reads_reference else None
    state = State(jnp.zeros((), jnp.int32), params, self.tx.init(params),
                  controls.init(self.objective.control), reference)
    whole = NamedSharding(self.mesh, PartitionSpec())
    return jax.tree.map(  # scalars live on every device
        lambda x: x if isinstance(x.sharding, NamedSharding) else sharding.put(x, whole), state)

  def asks(self, batch: Batch, measured: bool) -> bool:
    """Whether the policy must score the rows of a rollout before its updates: to measure the change
    of entropy, or since neither the one update nor the columns of the rollout suffice."""
    t = self.experiment.training
    own = self.on_policy or (t.old_logp == "sampler" and not self.experiment.sampling.ahead)
    return measured or batch.old_logp is None or not own

  def plan(self, batch: Batch, parts: int) -> tuple[packing.Plan | None, float]:
    """(where rows lie in `parts` parts, None without packing; padded share of all positions)."""
    real, counted = np.asarray(self.lengths(batch))
    length, max_tokens = batch.prompt.shape[1] + batch.tokens.shape[1], batch.tokens.shape[1]
    if not self.experiment.training.packing:
      return None, 1.0 - float(real.sum()) / (len(real) * length)
    ways = sharding.row_devices(self.mesh)
    c = self.config
    made = packing.make(
        real, counted, length=length, max_tokens=max_tokens, ways=ways, parts=parts,
        # numbers that a layer keeps: scores and weights beside states
        attention=2.0 * c.heads / (8.0 * c.width + 3.0 * c.mlp_width),
        balanced=self.objective.scope == "batch")
    share = 1.0 - float(real.sum()) / (ways * parts * made.bins * made.width)
    place = partial(sharding.put, sharding=sharding.rows(self.mesh))
    return dataclasses.replace(made, start=place(made.start), order=place(made.order)), share

  def _lengths(self, batch: Batch) -> Array:
    """[2, B] tokens of every row in all, and those of its response that count."""
    return jnp.stack([_valid(batch).sum(1), batch.mask.sum(1)])

  def statistics(self, params: Any, rows: Batch, spec: vocab.Spec,
                 plan: packing.Plan | None = None) -> dict[str, Array]:
    """The asked statistics [B, T] of the response tokens, from hidden states and the head.

    plan: rows lie in its bins, from the column START on.
    """
    length = rows.prompt.shape[1]
    tokens = jnp.concatenate([rows.prompt, rows.tokens], axis=1)
    valid, head = _valid(rows), transformer.head_matrix(params)
    if plan is not None:
      laid = packing.lay(plan, rows.extra[packing.START], tokens, valid, rows.mask)
      hidden = transformer.hidden_states(self.config, params, laid.tokens, laid.positions,
                                         laid.segments)
      listed = vocab.fused(packing.states(laid, hidden), head, laid.target, spec, self.layout)
      return packing.columns(laid, rows.mask, listed)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    hidden = transformer.hidden_states(self.config, params, tokens, positions,
                                       valid.astype(jnp.int32))
    # position i predicts token i + 1: the last prompt position predicts the first response token
    hidden = hidden[:, length - 1:-1]
    return vocab.fused(hidden, head, rows.tokens, spec, self.layout)

  def gradient(self, params: Any, batch: Batch, control: dict[str, Array],
               plan: packing.Plan | None = None):
    """`microbatch.gradient` of an optimiser batch, packed where there is a plan."""
    placed, order = _placed(batch, plan)
    spec = self.objective.statistics

    def statistics(p, rows):
      live = self.statistics(p, rows, spec, plan)
      if not self.on_policy:
        return live
      return {**live, "old_logp": jax.lax.stop_gradient(live["logp"]),
              "old_entropy": jax.lax.stop_gradient(live["entropy"])}

    return microbatch.gradient(self.objective, statistics, params, placed, control,
                               micro=self.experiment.training.micro, order=order)

  def _score(self, params: Any, batch: Batch, names: tuple[str, ...],
             plan: packing.Plan | None = None) -> dict[str, Array]:
    spec = dataclasses.replace(self.objective.vocab, names=names)
    micro = self.experiment.training.micro * self.experiment.training.updates
    placed, order = _placed(batch, plan)
    parts = microbatch.split(placed, micro, order)
    return microbatch.merge(jax.lax.map(
        lambda rows: self.statistics(params, rows, spec, plan), parts), order)

  def _begin(self, state: State, batch: Batch, plan: packing.Plan | None = None) -> State:
    """Lets controllers see the first rollout at the initial policy, before any update."""
    live = self._score(state.params, batch, self.objective.statistics.names, plan)
    batch = self._noised(batch, state.step)
    scored = self.objective.score({**batch.columns(), **state.control, **live})
    control = controls.begin(self.objective.control, state.control, self.objective.means(scored))
    return dataclasses.replace(state, control=control)

  def _prepare(self, batch: Batch, state: State) -> Batch:
    """Rewards and advantages of a whole rollout."""
    batch = self.objective.prepare(self._noised(batch, state.step), state.control)
    return batch.replace(noise=None)  # every update draws its own

  def _noised(self, batch: Batch, step: Array) -> Batch:
    """With the numbers that break ties, where a term reads them."""
    if "noise" not in self.objective.reads:
      return batch
    return batch.replace(noise=keys.tie_noise(batch.row, step, batch.tokens.shape[1]))

  def _select(self, batch: Batch, update: Array, replay: Batch | None = None) -> Batch:
    """Rows of one update: whole groups, every `updates`-th prompt, devices keep their rows; after
    them those of the replay."""
    u, g = self.experiment.training.updates, self.experiment.sampling.samples
    own = lambda x: x.reshape(-1, u, g, *x.shape[1:])[:, update].reshape(-1, *x.shape[1:])
    if replay is None:
      return jax.tree.map(own, batch)
    on_rows = sharding.rows(self.mesh)
    return jax.tree.map(lambda x, y: jax.lax.with_sharding_constraint(
        jnp.concatenate([own(x), own(y)]), on_rows), batch, replay)

  def _step(self, state: State, batch: Batch, plan: packing.Plan | None = None
            ) -> tuple[State, dict[str, Array]]:
    """(state, batch) -> (state, metrics): gradient, update, controllers, reference."""
    self.traces += 1
    self.shapes.add(None if plan is None else plan.shape)
    batch = self._noised(batch, state.step)
    grads, metrics, live, scored = self.gradient(state.params, batch, state.control, plan)
    norm = optax.tree.norm(grads)
    drawn = batch.mask & ~batch.extra.get("replayed", jnp.zeros(1, bool))[:, None]
    exact = masked_mean(live["entropy"], drawn)
    metrics = {**metrics, "train/grad_norm": norm, "entropy/exact": exact,
               "method/touched": self.objective.touched(scored, batch)}
    if self.on_policy and batch.old_logp is not None:
      metrics |= _gap(live["logp"], batch.old_logp, batch.mask)
    updates, opt = self.tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    new = State(state.step + 1, params, opt,
                controls.update(self.objective.control, state.control, metrics),
                self._reference(state, params))
    fine = jnp.isfinite(metrics["train/loss"]) & jnp.isfinite(norm) & jnp.isfinite(exact)
    # an update that is not finite is not applied: nothing of the state moves
    new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)
    metrics["train/applied"] = fine.astype(jnp.float32)
    metrics.update({f"control/{name}": x for name, x in new.control.items() if x.ndim == 0})
    return new, metrics

  def _reference(self, state: State, params: Any) -> Any:
    rule = self.experiment.reference
    if state.reference is None or rule.rule == "frozen":
      return state.reference
    if rule.rule == "ema":
      return jax.tree.map(lambda r, p: rule.decay * r + (1.0 - rule.decay) * p,
                          state.reference, params)
    due = (state.step + 1) % (rule.every * self.experiment.training.updates) == 0
    return jax.tree.map(lambda r, p: jnp.where(due, p, r), state.reference, params)

  def _observe(self, before: dict[str, Array], batch: Batch, sampler_logp: Array | None
               ) -> dict[str, Array]:
    """What a rollout shows of the policy that made it: entropies under their labels, groups,
    lengths, and how far trainer and sampler are apart (None: the trainer was not asked)."""
    mask, size = batch.mask, self.experiment.sampling.samples
    r = batch.rewards.reshape(-1, size)
    mean = lambda x: x.astype(jnp.float32).mean()
    shown = {
        "entropy/exact": masked_mean(before["entropy"], mask),
        "entropy/sequence": masked_mean(before["entropy"], mask, axis=1).mean(),
        "entropy/surprisal": -masked_mean(before["logp"], mask),
        "reward/mean": batch.rewards.mean(), "reward/std": batch.rewards.std(),
        "reward/right": mean(batch.verdict == 1), "reward/unknown": mean(batch.verdict == -1),
        "rollout/groups_with_signal": mean((r != r[:, :1]).any(1)),
        "rollout/length": mask.sum(1).astype(jnp.float32).mean(),
        "rollout/finished": mean(batch.finished), "rollout/tokens": mask.sum()}
    if "nucleus_entropy" in before:
      label = f"entropy/truncated@{self.objective.vocab.top_p:g}"
      shown[label] = masked_mean(before["nucleus_entropy"], mask)
    return shown | ({} if sampler_logp is None else _gap(before["logp"], sampler_logp, mask))

  def _account(self, before: dict[str, Array], after: dict[str, Array],
               batch: Batch) -> dict[str, Array]:
    """Predicted and measured change of entropy over the updates of one rollout."""
    moved = masked_mean(before["logp"] - after["logp"], batch.mask)
    adv = batch.adv  # absent where the current policy alone shapes it
    if adv is None:
      adv = self.objective.shaped({**batch.columns(), **before})["adv"]
    return {**entropy_change.account(before, after, adv, batch.mask), "train/kl": moved}
