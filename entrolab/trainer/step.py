"""One step of a run, read top to bottom: rollout, verdicts, advantages, updates, measurements."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from entrolab import keys, row_groups, sharding
from entrolab.batch import Batch
from entrolab.cost import chips, flops
from entrolab.experiment import Experiment
from entrolab.models import parameters
from entrolab.models.transformer import Config, Params
from entrolab.rollout import continuous_batching, one_step_off_policy
from entrolab.rollout.strategy import Request, Rollout
from entrolab.tasks.prompts import evaluation, iterator
from entrolab.tasks.task import Lazy, Tokenizer
from entrolab.trainer import evaluate, failures, metrics
from entrolab.trainer.data import Facts
from entrolab.trainer.learner import AFTER, BEFORE, Learner
from entrolab.trainer.ledger import EntropyLedger, StepLedger, due, fresh_states
from entrolab.trainer.packing import Plan, padded_share
from entrolab.trainer.state import State, names
from entrolab.typing import Array, Float

# ---- The parts of a run ------------------------------------------------------------------------


class Lab:
  """The parts of a run: model, task, engine and learner on one mesh, and where its data are.

  Raises ValueError where rows, heads or vocabulary do not divide over the mesh, or rows not over
  the processes.
  """

  def __init__(self, experiment: Experiment):
    self.experiment = experiment
    self.mesh = sharding.make_mesh(experiment.mesh.data, experiment.mesh.fsdp,
                                   experiment.mesh.tensor)
    self.groups = row_groups.of(self.mesh)  # refuses a mesh before a large model is loaded
    # the policy before training: sizes, parameters, and the tokenizer that belongs to them
    self.config, self.params, self.tokenizer = experiment.model.load()
    check_sizes(experiment, self.config, self.mesh)

    self.learner = Learner(experiment, self.config, self.mesh)
    self.engine = experiment.rollout.engine(
        self.learner.config, self.tokenizer, experiment.task, self.mesh,
        columns_of_engine(experiment))
    self.roofline = model_roofline(experiment, self.config, self.mesh)

    # everything random of a run follows from this key, by step and row (`entrolab.keys`)
    self.key = jax.random.key(experiment.seed)
    self.data = iterator(experiment.task, experiment.seed, experiment.sampling.prompts,
                         tokenizer=self.tokenizer,
                         places=self.groups.places(experiment.sampling.prompts).tolist())
    self.in_flight = one_step_off_policy.RequestsInFlight(experiment, self.engine, self.data)
    evaluated = held_out(experiment, self.tokenizer)
    self.problems = list(evaluated)
    self.facts = Facts.of(experiment.task, self.data.source, evaluated,
                          experiment.evaluation.problems, experiment.sampling.prompts)
    self.ledger = EntropyLedger(self.learner)

    # what changes beside `State`, on the host alone
    self.host: Mapping[str, np.ndarray] = {}  # what the rollout strategy remembers of earlier steps
    self.plan_shapes: set[tuple[int, int, int] | None] = set()  # of the updates so far

  def request(self, state: State, step: int) -> Request:
    """The request to the strategy of the experiment for one step; reads no prompt yet."""
    return Request(self.learner.serve_rollouts(state.params), lambda: next(self.data), self.key,
                   step, state.control, self.experiment.sampling, self.host)

  def rollout(self, state: State, step: int) -> Rollout:
    """The verified rows of one step, by the strategy of the experiment."""
    return self.experiment.rollout(self.engine, self.request(state, step))

  def evaluate(self, params: Params) -> dict[str, float]:
    """eval/* on the held-out problems."""
    return self.evaluated(params)[0]

  def evaluated(self, params: Params, before: Mapping[str, Sequence[float]] | None = None
                ) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(eval/* on the held-out problems, their values by metric); before: such values of an earlier
    policy, from which the changes are taken."""
    found, values = evaluate.evaluate(self.engine, self.learner.serve(params), self.problems,
                                      self.key, self.experiment)
    if before:
      questions = [self.experiment.task.question(example) for example in self.problems]
      earlier = {name: np.asarray(x, float) for name, x in before.items()}
      found |= evaluate.changes(earlier, values, self.experiment.evaluation.samples, questions)
    return found, {name: x.tolist() for name, x in values.items()}

  def checkpoint_state(self, state: State) -> State:
    """The state as a checkpoint stores it: with what the strategy remembers, and rows drawn ahead.
    """
    on_every_device = sharding.whole(self.mesh)
    remembered = {name: sharding.put(x, on_every_device) for name, x in self.host.items()}
    return dataclasses.replace(state, host={**remembered, **self.in_flight.leaves()})


def check_sizes(experiment: Experiment, config: Config, mesh: Mesh) -> None:
  """Raises ValueError where the rows of a rollout, of a micro-batch or of its replay, or the sizes
  of the model, do not divide over the mesh."""
  s = experiment.sampling
  t = experiment.training
  parameters.check_mesh(config, mesh, s.prompts, "sampling.prompts")
  if s.slots:
    continuous_batching.check(s.slots, s.prompts * s.samples, sharding.row_devices(mesh))
  rows = s.prompts // t.updates * s.samples // t.micro
  parameters.check_mesh(config, mesh, rows, "rows of a micro-batch")
  rows = experiment.rollout.further_rows(s.samples, t.updates, t.micro) // t.micro
  parameters.check_mesh(config, mesh, rows, "rows of a micro-batch for a replay")


def columns_of_engine(experiment: Experiment) -> list[str]:
  """Further columns that terms read and that the strategy does not fill itself."""
  objective = experiment.objective
  wanted = [*objective.extra, *(["phase"] if "phase" in objective.reads else [])]
  return [name for name in wanted if name not in experiment.rollout.columns]


def model_roofline(experiment: Experiment, config: Config, mesh: Mesh) -> flops.ModelRoofline:
  """The least time that sampling and training need on these devices."""
  int8 = experiment.sampling.weights == "int8"
  width = 1.0 if int8 else jax.dtypes.canonicalize_dtype(experiment.training.dtype).itemsize
  return flops.ModelRoofline(config, chips.of(mesh.local_devices), mesh.size,
                             experiment.mesh.tensor, width)


def held_out(experiment: Experiment, tokenizer: Tokenizer) -> Lazy:
  """The problems of every evaluation, all different, which are never trained on."""
  return evaluation(experiment.task, tokenizer, experiment.evaluation.problems, experiment.seed)


# ---- The step ----------------------------------------------------------------------------------


def train_step(lab: Lab, state: State, step: int, folder: pathlib.Path
               ) -> tuple[State, Rollout, dict[str, Any]]:
  """One rollout and its updates: (state, rollout, metrics).

  folder: of the run, where updates that are not finite are saved for a replay.
  """
  experiment, learner = lab.experiment, lab.learner
  every = experiment.training.measure_every
  measured = bool(every) and step % every == 0
  clock = Clock()

  rollout, plan, forward = draw_and_verify(lab, state, step, measured)
  jax.block_until_ready(rollout.batch.tokens)
  clock.lap("rollout")

  # columns that need the trainer: old and reference log-probs, then rewards and advantages
  batch, before, sampler_logp = with_old_policy(lab, rollout.batch, forward)
  replayed = rollout.replay
  if learner.reads_reference:
    batch = with_reference(learner, state, batch, plan)
    if replayed is not None:
      replayed = with_reference(learner, state, replayed, plan_of(lab, replayed))
  batch = learner.prepare(batch, state)
  if step == 0 and experiment.objective.control:
    state = learner.begin_control(state, batch, plan)  # controllers measure the initial policy
  shown = metrics.of_rollout(before, batch, sampler_logp, samples=experiment.sampling.samples,
                             top_p=experiment.objective.vocab.top_p)
  clock.lap("forward", shown)

  ledger = opened_ledger(lab, state, step)
  clock.lap("ledger")
  state, of_updates = update(lab, state, step, batch, replayed, folder, ledger)
  if rollout.learned is not None:
    lab.host = rollout.learned(batch)
  clock.lap("train", of_updates)
  if ledger is not None:
    clock.move("train", "ledger", ledger.seconds)
    shown |= ledger.totals()

  if measured:
    after = learner.forward(state.params, batch, AFTER, plan)
    shown |= metrics.of_updates(experiment.objective, before, after, batch)
    clock.lap("measure", shown)

  # of the same name, the metric of the whole rollout before its updates stands: entropy/exact
  shown = {name: np.asarray(x) for name, x in {**of_updates, **shown}.items()}
  shown |= {f"rollout/{name}": count for name, count in rollout.counts.items()}
  shown |= speed(lab, batch, rollout, int(shown["rollout/tokens"]), clock.seconds)
  return state, dataclasses.replace(rollout, batch=batch), shown


# ---- Rows: drawn, verified, and read by the policy ---------------------------------------------


class StepRows(NamedTuple):
  """The rows of a step before any column that the trainer fills."""

  rollout: Rollout  # verified
  plan: Plan | None  # where its rows lie in bins; None without packing
  forward: dict[str, Array] | None  # as of `forward_before`, [B, T]


def draw_and_verify(lab: Lab, state: State, step: int, measured: bool) -> StepRows:
  """The verified rows of one step, and the policy's statistics of them where they are needed.

  Up to two requests are in flight, so that devices and host need not wait for each other: while
  the host verifies the rows of this step, the devices compute the policy's statistics of them and,
  with sampling.ahead=1, draw the rows of the next step.
  """
  drawn = lab.in_flight.rows_of_step(lambda: lab.request(state, step))
  if drawn is None:
    # the strategy looks at verdicts before its last rows are drawn: nothing can overlap
    rollout = lab.rollout(state, step)
    plan = plan_of(lab, rollout.batch)
    return StepRows(rollout, plan, forward_before(lab, state, rollout.batch, plan, measured))

  # rows of this step: dispatched now, or one step ago and on the devices since
  rows = lab.engine.rows(drawn)
  plan = plan_of(lab, rows)  # with packing, waits for the rows
  # rows of the next step: of the policy before the updates of this one
  lab.in_flight.dispatch_next(lambda: lab.request(state, step + 1))
  forward = forward_before(lab, state, rows, plan, measured)  # dispatched, and not waited for
  return StepRows(lab.engine.judged(drawn, rows=rows), plan, forward)


def forward_before(lab: Lab, state: State, rows: Batch, plan: Plan | None, measured: bool
                   ) -> dict[str, Array] | None:
  """Statistics of the rows at the policy before its updates, all of BEFORE where the step is
  measured; None where nothing needs them."""
  if not lab.learner.needs_forward(rows, measured):
    return None
  names = BEFORE if measured else ("entropy", "logp")  # the others cost a sort of the vocabulary
  return lab.learner.forward(state.params, rows, names, plan)


def parts_of(experiment: Experiment) -> int:
  """Parts in which a whole rollout passes the model: those of all its updates."""
  return experiment.training.updates * experiment.training.micro


def plan_of(lab: Lab, batch: Batch) -> Plan | None:
  """Where the rows of a whole rollout lie in bins; None, and nothing is waited for, unpacked."""
  if not lab.experiment.training.packing:
    return None
  return lab.learner.plan(batch, parts_of(lab.experiment))[0]


def with_old_policy(lab: Lab, batch: Batch, forward: dict[str, Array] | None
                    ) -> tuple[Batch, dict[str, Array], Float[Array, "B T"] | None]:
  """Settles whose log-probs `old_logp` are: those of the sampler, or of the trainer's forward pass.

  Returns (batch, statistics before the updates, the sampler's log-probs to compare them with).
  """
  sampler_logp = batch.old_logp
  if forward is None:  # the sampler's report stands for both, and there is nothing to compare
    of_sampler: dict[str, Any] = {"logp": batch.old_logp, "entropy": batch.old_entropy}
    return batch, of_sampler, None
  if sampler_logp is None:  # demonstrations, which nobody sampled
    sampler_logp = forward["logp"]
  elif lab.experiment.training.old_logp == "sampler":
    return batch, forward, sampler_logp
  return (batch.replace(old_logp=forward["logp"], old_entropy=forward["entropy"]), forward,
          sampler_logp)


def with_reference(learner: Learner, state: State, rows: Batch, plan: Plan | None) -> Batch:
  """The rows with the log-probs of the reference policy."""
  return rows.replace(ref_logp=learner.forward(state.reference, rows, ("logp",), plan)["logp"])


# ---- Updates -----------------------------------------------------------------------------------


def update(lab: Lab, state: State, step: int, batch: Batch, replayed: Batch | None,
           folder: pathlib.Path, ledger: StepLedger | None = None
           ) -> tuple[State, dict[str, Any]]:
  """All updates of a rollout: (state, metrics); means over the updates, but control/* of the last.

  ledger: gets the account of every update that was applied.
  """
  learner, training = lab.learner, lab.experiment.training
  of_updates, lengths = [], []
  for number in range(training.updates):
    rows = learner.select(batch, np.int32(number), replayed)
    lengths.append(learner.lengths(rows))  # on the devices: without packing no update waits for it
    plan, padding = learner.plan(rows, training.micro) if training.packing else (None, math.nan)
    lab.plan_shapes.add(None if plan is None else plan.shape)
    before = lab.ledger.before(state) if ledger is not None else None  # a step donates its state
    state, shown = learner.step(state, rows, plan)
    # waits for the update: the next one takes the buffers of the state that is saved here
    if not bool(shown["train/applied"]):
      wrong = names(learner.faults(state, rows, plan))
      failures.save(folder, lab.experiment, lab.key, step, number, rows, state, shown, wrong)
    elif ledger is not None and before is not None:
      ledger.add(before, state, shown["train/grad_norm"], rows, plan)
    of_updates.append({**shown, "train/padding": padding})
  if not training.packing:
    positions = batch.prompt.shape[1] + batch.tokens.shape[1]  # of a row
    for shown, of_rows in zip(of_updates, lengths, strict=True):
      tokens = np.asarray(of_rows)[0]
      shown["train/padding"] = padded_share(tokens, len(tokens) * positions)
  means = {name: np.mean([float(shown[name]) for shown in of_updates]) for name in of_updates[0]}
  last = {name: x for name, x in of_updates[-1].items() if name.startswith("control/")}
  return state, {**means, **last}


def opened_ledger(lab: Lab, state: State, step: int) -> StepLedger | None:
  """The ledger of a step that is accounted for, on states of the policy before its updates."""
  if not due(lab.experiment, step):
    return None
  states = fresh_states(lab.engine, lab.learner.serve(state.params), lab.problems, lab.key, step,
                        lab.experiment)
  return lab.ledger.open(state.params, states, jax.random.fold_in(keys.ledger(lab.key), step))


# ---- What it cost ------------------------------------------------------------------------------


class Clock:
  """Wall seconds of the phases of a step."""

  def __init__(self) -> None:
    self.since = time.perf_counter()
    self.seconds: dict[str, float] = {}

  def lap(self, phase: str, results: Any = None) -> None:
    """Ends a phase, once the devices have computed its results."""
    jax.block_until_ready(results)
    now = time.perf_counter()
    self.seconds[phase] = now - self.since
    self.since = now

  def move(self, of: str, to: str, seconds: float) -> None:
    """Counts seconds of one phase as those of another."""
    self.seconds[of] -= seconds
    self.seconds[to] += seconds


def speed(lab: Lab, batch: Batch, rollout: Rollout, tokens: int, seconds: dict[str, float]
          ) -> dict[str, Any]:
  """Tokens a second, seconds of the phases, and their share of what the devices could do at best.

  Rows drawn ahead are drawn during all phases: their tokens a second are over the whole step.
  """
  sampled_share = rollout.sampled / batch.tokens.shape[0]
  sampled = int(tokens * sampled_share)
  shown = {"rollout/refills": rollout.refills, "rollout/sampled_tokens": sampled,
           **{f"timing_s/{phase}": x for phase, x in seconds.items()},
           "timing_s/verify": rollout.verify_seconds}
  if lab.experiment.sampling.ahead:
    return {**shown, "rollout/tokens_per_second": sampled / sum(seconds.values())}
  lengths = np.asarray(lab.learner.lengths(batch))
  samples = lab.experiment.sampling.samples
  least = lab.roofline.sampled(lengths, samples, rollout.steps, sampled_share)
  return {**shown, "rollout/tokens_per_second": sampled / seconds["rollout"],
          "rollout/roofline": least / seconds["rollout"],
          "train/tokens_per_second": float(lengths[0].sum()) / seconds["train"],
          "train/roofline": lab.roofline.trained(lengths) / seconds["train"]}
