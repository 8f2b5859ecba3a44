"""The loop, read top to bottom: rollout, verdict, advantage, updates, account, log, save."""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from entrolab import config, sharding
from entrolab.batch import Batch
from entrolab.cost import chips, flops
from entrolab.experiment import Experiment
from entrolab.models import parameters
from entrolab.rollout import compilations, continuous_batching, one_step_off_policy, strategy
from entrolab.rollout.strategy import Request, Rollout
from entrolab.tasks.prompts import fitting, iterator
from entrolab.trainer import checkpoint, evaluate, explain, guards, log, report
from entrolab.trainer.files import write_text
from entrolab.trainer.learner import AFTER, BEFORE, Learner, State
from entrolab.trainer.packing import Plan

AGREE_EVERY = 10  # steps between checks that all hosts hold the same
PATIENCE = 5  # updates in a row that were not finite before the run stops


class Lab:
  """What a run holds open: mesh, model, task, engine, learner."""

  def __init__(self, experiment: Experiment):
    self.experiment = experiment
    m, s, t = experiment.mesh, experiment.sampling, experiment.training
    strategy.check(experiment.rollout, s, jax.process_count())
    self.mesh = sharding.make_mesh(m.data, m.fsdp, m.tensor)
    self.config, self.params, self.tokenizer = experiment.model.load()
    parameters.check_mesh(self.config, self.mesh, s.prompts, "sampling.prompts")
    if s.slots:
      continuous_batching.check(s.slots, s.prompts * s.samples, sharding.row_devices(self.mesh))
    rows = s.prompts // t.updates * s.samples // t.micro
    parameters.check_mesh(self.config, self.mesh, rows, "rows of a micro-batch")
    rows = experiment.rollout.further_rows(s.samples, t.updates, t.micro) // t.micro
    parameters.check_mesh(self.config, self.mesh, rows, "rows of a micro-batch for a replay")
    self.learner = Learner(experiment, self.config, self.mesh)
    objective, made = experiment.objective, experiment.rollout.columns
    wanted = (*objective.extra, *(("phase",) if "phase" in objective.reads else ()))
    self.engine = experiment.rollout.engine(
        self.learner.config, self.tokenizer, experiment.task, self.mesh,
        [name for name in wanted if name not in made])
    number = 1.0 if s.weights == "int8" else jax.dtypes.canonicalize_dtype(t.dtype).itemsize
    self.meter = flops.ModelRoofline(self.config, chips.of(self.mesh.local_devices),
                                     self.mesh.size, m.tensor, number)
    self.key = jax.random.key(experiment.seed)
    self.host: Mapping[str, np.ndarray] = {}  # what the strategy keeps
    rank, count = jax.process_index(), jax.process_count()
    self.data = iterator(experiment.task, experiment.seed, s.prompts, tokenizer=self.tokenizer,
                         process_index=rank, process_count=count)
    self.draws = one_step_off_policy.Draws(experiment, self.engine, self.data)
    held = fitting(experiment.task, self.tokenizer, "eval", experiment.seed)
    self.problems = [held[i] for i in range(min(experiment.evaluation.problems, len(held)))]

  def request(self, state: State, step: int) -> Request:
    """What the strategy of the experiment is asked for at one step."""
    return Request(self.learner.serve_rollouts(state.params), lambda: next(self.data), self.key,
                   step, state.control, self.experiment.sampling, self.host)

  def rollout(self, state: State, step: int) -> Rollout:
    """The verified rows of one step, by the strategy of the experiment."""
    return self.experiment.rollout(self.engine, self.request(state, step))

  def with_host(self, state: State) -> State:
    """The state of a checkpoint: with what the strategy keeps, and rows drawn ahead."""
    kept = jax.device_put(dict(self.host), sharding.whole(self.mesh))
    return dataclasses.replace(state, host={**kept, **self.draws.leaves()})

  def evaluate(self, params: Any) -> dict[str, float]:
    """eval/* on the held-out problems."""
    return evaluate.evaluate(self.engine, self.learner.serve(params), self.problems, self.key,
                             self.experiment)[0]

  def plan(self) -> str:
    """What `--explain` prints."""
    return explain.plan(self.experiment, self.config, self.experiment.task.max_prompt)


def rolled_out(lab: Lab, state: State, step: int, measured: bool) -> tuple[
    Rollout, Plan | None, dict[str, Any] | None]:
  """(the verified rows of one step, where they lie, what the policy makes of them where it must be
  asked before its updates)."""
  learner = lab.learner
  parts = lab.experiment.training.updates * lab.experiment.training.micro

  def scored(rows):
    plan, _ = learner.plan(rows, parts)  # waits for the rows
    lab.draws.go_ahead(lambda: lab.request(state, step + 1))
    asked = learner.asks(rows, measured)
    return plan, learner.score(state.params, rows, BEFORE, plan) if asked else None

  if (drawn := lab.draws.take(lambda: lab.request(state, step))) is None:
    rollout = lab.rollout(state, step)
    return rollout, *scored(rollout.batch)
  rows = lab.engine.rows(drawn)
  told = scored(rows)  # the devices do this, and may draw the next rows, while the host verifies
  return lab.engine.judged(drawn, rows=rows), *told


def train_step(lab: Lab, state: State, step: int, folder: pathlib.Path
               ) -> tuple[State, Rollout, dict[str, Any]]:
  """One rollout and its updates: (state, rollout, metrics)."""
  experiment, learner = lab.experiment, lab.learner
  t, clock = experiment.training, Clock()
  measured = bool(t.measure_every) and step % t.measure_every == 0
  rollout, plan, before = rolled_out(lab, state, step, measured)
  jax.block_until_ready(rollout.batch.tokens)
  clock.lap("rollout")
  batch, again = rollout.batch, rollout.replay
  sampled = batch.old_logp
  if before is None:
    before, sampled = {"logp": batch.old_logp, "entropy": batch.old_entropy}, None
  elif t.old_logp == "trainer" or sampled is None:  # None: rows that nobody sampled
    sampled = before["logp"] if sampled is None else sampled
    batch = batch.replace(old_logp=before["logp"], old_entropy=before["entropy"])
  if learner.reads_reference:
    refer = lambda rows, plan: rows.replace(
        ref_logp=learner.score(state.reference, rows, ("logp",), plan)["logp"])
    batch = refer(batch, plan)
    again = again and refer(again, learner.plan(again, t.updates * t.micro)[0])
  batch = learner.prepare(batch, state)
  if step == 0 and experiment.objective.control:
    state = learner.begin(state, batch, plan)
  metrics = learner.observe(before, batch, sampled)
  clock.lap("score", metrics)
  of_updates = []
  for update in range(t.updates):
    rows = learner.select(batch, np.int32(update), again)
    of_update, padding = learner.plan(rows, t.micro)
    state, own = learner.step(state, rows, of_update)
    if not bool(own["train/applied"]):
      guards.save_failure(folder, lab, step, update, rows, state, own)
    of_updates.append({**own, "train/padding": padding})
  means = {name: np.mean([float(m[name]) for m in of_updates]) for name in of_updates[0]}
  last = {name: x for name, x in of_updates[-1].items() if name.startswith("control/")}
  if rollout.learned is not None:
    lab.host = rollout.learned(batch)
  clock.lap("train", means)
  if measured:
    after = learner.score(state.params, batch, AFTER, plan)
    metrics |= learner.account(before, after, batch)
    clock.lap("measure", metrics)
  metrics = {**means, **last, **metrics}  # entropy/exact: over the whole rollout, before updates
  metrics = {name: np.asarray(x) for name, x in metrics.items()}
  metrics |= {f"rollout/{name}": count for name, count in rollout.counts.items()}
  metrics |= speed(lab, batch, rollout, int(metrics["rollout/tokens"]), clock.seconds)
  return state, dataclasses.replace(rollout, batch=batch), metrics


def speed(lab: Lab, batch: Batch, rollout: Rollout, tokens: int, seconds: dict[str, float]
          ) -> dict[str, Any]:
  """Tokens a second, seconds of the phases, and their share of what the devices could do at best.

  Rows drawn ahead have no phase of their own: their tokens are those of a step's whole time.
  """
  share = rollout.sampled / batch.tokens.shape[0]
  drawn, lengths = int(tokens * share), np.asarray(lab.learner.lengths(batch))
  shown = {"rollout/refills": rollout.refills, "rollout/sampled_tokens": drawn,
           **{f"time/{name}": x for name, x in seconds.items()},
           "time/verify": rollout.verify_seconds}
  if lab.experiment.sampling.ahead:
    return {**shown, "rollout/tokens_per_second": drawn / sum(seconds.values())}
  least = lab.meter.sampled(lengths, lab.experiment.sampling.samples, rollout.steps, share)
  return {**shown, "rollout/tokens_per_second": drawn / seconds["rollout"],
          "rollout/roofline": least / seconds["rollout"],
          "train/tokens_per_second": float(lengths[0].sum()) / seconds["train"],
          "train/roofline": lab.meter.trained(lengths) / seconds["train"]}


class Clock:
  """Wall seconds of the phases of a step."""

  def __init__(self) -> None:
    self.begin, self.seconds = time.perf_counter(), {}

  def lap(self, name: str, wait: Any = None) -> None:
    """Ends a phase, after what it computed is there."""
    jax.block_until_ready(wait)
    now = time.perf_counter()
    self.seconds[name], self.begin = now - self.begin, now


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """Yields a list that SIGINT or SIGTERM appends to; a second one ends the process at once."""
  got: list[int] = []
  previous = {}

  def handle(number, frame):
    del frame
    got.append(number)
    print(f"\n{signal.Signals(number).name}: saving after this step; once more to stop at once",
          flush=True)
    signal.signal(number, previous[number])

  for number in (signal.SIGINT, signal.SIGTERM):
    previous[number] = signal.signal(number, handle)
  try:
    yield got
  finally:
    for number, old in previous.items():
      signal.signal(number, old)


def describe(lab: Lab, source: dict[str, Any] | None) -> dict[str, Any]:
  """What config.json holds; source: the command's `config` and `set`, where there was one."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  versions = {name: importlib.metadata.version(name) for name in packages}
  device = jax.devices()[0]
  chip = dataclasses.asdict(lab.meter.chip)
  return {"name": lab.experiment.name, "source": source, "hash": config.config_hash(lab.experiment),
          "experiment": config.to_dict(lab.experiment), "plan": lab.plan(),
          "versions": versions, "devices": {"kind": device.device_kind, "count": jax.device_count(),
                                            "mesh": dict(lab.mesh.shape), "rates": chip}}


def check_hosts(lab: Lab, state: State, when: str) -> None:
  """Raises RuntimeError naming host and value when the hosts of a run have drifted apart."""
  if jax.process_count() > 1:
    sharding.agree({
        "the configuration": config.config_hash(lab.experiment),
        "the data position": lab.data.get_state(),
        "the key": np.asarray(jax.random.key_data(lab.key)).tolist(),
        "the parameters": checkpoint.fingerprint(state.params)}, when)


def check_same(experiment: Experiment, meta: dict[str, Any], allow: bool) -> list[str]:
  """The leaves in which a saved run differs. Raises ValueError with them unless allowed."""
  changed = config.diff(meta["mathematics"], json.loads(json.dumps(
      config.mathematics(experiment))))
  if changed and not allow:
    raise ValueError("this run was started with other numbers; choose another --workdir, or "
                     "--allow_config_change to go on and record it:\n  " + "\n  ".join(changed))
  return changed


@dataclasses.dataclass
class Progress:
  """What a run knows besides its state; in every checkpoint."""
  step: int = 0
  tokens: int = 0
  seconds: float = 0.0
  before: dict[str, float] | None = None
  changes: list[str] = dataclasses.field(default_factory=list)
  failed: int = 0  # updates in a row
  alarms: list[str] = dataclasses.field(default_factory=list)  # those that last


def run(experiment: Experiment, folder: pathlib.Path, *, allow_config_change: bool = False,
        source: dict[str, Any] | None = None) -> dict[str, Any]:
  """Trains, or goes on training, in `folder`; {"before", "after", "finished"}.

  Raises ValueError when the folder holds a run of other mathematics, FloatingPointError after
  PATIENCE updates in a row that were not finite.
  """
  begin = time.time()
  folder.mkdir(parents=True, exist_ok=True)
  lab = Lab(experiment)
  sharding.agree({"the configuration": config.config_hash(experiment),
                  "the mesh": dict(lab.mesh.shape), "the data": lab.data.name})
  print(explain.batch_sentence(experiment), flush=True)
  for sentence in explain.warnings(experiment):
    print(f"note: {sentence}", flush=True)
  state, progress, cursor = lab.learner.init(lab.params), Progress(), 0
  saved = checkpoint.Checkpoints(folder / "checkpoints", experiment.saving)

  def like(meta):
    progress.changes = check_same(experiment, meta, allow_config_change)
    return dataclasses.replace(
        state, host=checkpoint.held(meta, "host.", sharding.whole(lab.mesh)))

  found = saved.restore(like)
  if found is not None:
    _, state, meta = found
    progress = Progress(**{**meta["progress"], "changes": meta["progress"]["changes"]
                           + progress.changes})
    lab.host = lab.draws.resume(lab.key, progress.step, meta["data"].encode(),
                                {name: np.asarray(x) for name, x in state.host.items()})
    state = dataclasses.replace(state, host=None)
    cursor = meta["cursor"]
    print(f"resuming {folder} after step {progress.step} of {experiment.training.steps}",
          flush=True)
  elif (folder / "metrics.jsonl").is_file():
    print(f"{folder} holds metrics and no checkpoint: starting anew", flush=True)
  check_hosts(lab, state, f"before step {progress.step}")
  if jax.process_index() == 0:
    write_text(folder / "config.json", json.dumps(
        {**describe(lab, source), "changes": progress.changes}, indent=1) + "\n")
  out = log.Log(folder, cursor, progress.step)
  try:
    result = loop(lab, state, progress, saved, out, begin - progress.seconds)
  finally:
    saved.close()
    out.close()
  if jax.process_index() == 0:
    print(f"report: {report.write(folder)}", flush=True)
  return result


def loop(lab: Lab, state: State, progress: Progress, saved: checkpoint.Checkpoints, out: log.Log,
         begin: float) -> dict[str, Any]:
  """Evaluate, train to the last step or to a signal, evaluate; a checkpoint whenever it leaves."""
  experiment, steps = lab.experiment, lab.experiment.training.steps

  def save():
    progress.seconds = time.time() - begin
    saved.save(progress.step, lab.with_host(state), {
        "mathematics": config.mathematics(experiment), "data": lab.draws.position.decode(),
        "cursor": out.cursor, "progress": dataclasses.asdict(progress)})

  def measured(metrics):
    return {"tokens": progress.tokens, "seconds": round(time.time() - begin, 3), **metrics}

  if progress.step >= steps and progress.before is not None:
    print(f"nothing left to train: all {steps} steps are done (a larger training.steps goes on); "
          "evaluating again", flush=True)
    save = lambda: None
  if progress.before is None:
    progress.before = lab.evaluate(state.params)
    out.write(0, measured(progress.before))
    print(f"before: pass@1 {progress.before.get('eval/pass@1', float('nan')):.3f}  "
          f"entropy {progress.before['eval/entropy']:.3f}", flush=True)
  warm: tuple[int, ...] | None = None
  with stop_signals() as stopped:
    while progress.step < steps and not sharding.where(bool(stopped)):
      start = time.time()
      state, rollout, metrics = train_step(lab, state, progress.step, out.folder)
      progress.step += 1
      if progress.step % AGREE_EVERY == 0:
        check_hosts(lab, state, f"after step {progress.step}")
      progress.tokens += metrics["rollout/sampled_tokens"]
      progress.failed = 0 if metrics["train/applied"] == 1.0 else progress.failed + 1
      warm = recompiled(lab, metrics, warm)
      guards.watch(experiment, progress, metrics, rollout.verdicts)
      every = experiment.evaluation.every
      if every and progress.step % every == 0 and progress.step < steps:
        metrics |= lab.evaluate(state.params)
        warm = None  # an evaluation has shapes of its own
      out.write(progress.step, measured(metrics))
      print(log.line(progress.step, steps, metrics,
                     (time.time() - start) * (steps - progress.step)), flush=True)
      middle = max(experiment.training.steps // 8, 1)
      if progress.step in (1, steps) or progress.step % middle == 0:
        out.samples(progress.step, rollout, lab.tokenizer, experiment.sampling.samples)
      if experiment.saving.every and progress.step % experiment.saving.every == 0:
        save()
      if progress.failed >= PATIENCE:
        raise FloatingPointError(f"step {progress.step - 1}: {PATIENCE} steps in a row were not "
                                 f"finite; their batches are in {out.folder / 'failures'}")
    if sharding.where(bool(stopped)):  # a signal may reach one host alone
      save()
      print(f"saved after step {progress.step}; the same command resumes", flush=True)
      return {"before": progress.before, "after": None, "finished": False}
  save()  # what follows is a function of what is saved: a kill in it loses nothing
  after = lab.evaluate(state.params)
  out.write(progress.step, measured(after))
  print(f"before -> after {progress.step} steps, 95 % intervals over {len(lab.problems)} problems\n"
        f"  {log.verdict(progress.before, after, experiment.evaluation.ks)}", flush=True)
  return {"before": progress.before, "after": after, "finished": True}


def recompiled(lab: Lab, metrics: dict[str, Any], warm: tuple[int, ...] | None
               ) -> tuple[int, ...]:
  """Counts compilations of sampler and step since `warm`, the counts after the first step: those
  of the step for a new shape of its plans, which only packing has, under a name of their own."""
  shapes = len(lab.learner.shapes)
  now = (compilations.total(), lab.learner.traces - shapes, shapes)
  warm = warm or now
  names = ("rollout/recompilations", "train/recompilations", "train/recompilations_packing")
  counts = dict(zip(names, (n - w for n, w in zip(now, warm, strict=True)), strict=True))
  if not lab.experiment.training.packing:
    del counts["train/recompilations_packing"]
  metrics |= counts
  return warm


def dry_run(experiment: Experiment) -> dict[str, Any]:
  """Compiles everything and runs one step on a few problems, in a folder that is thrown away."""
  few = dataclasses.replace(experiment.evaluation, problems=experiment.sampling.prompts)
  one = dataclasses.replace(experiment, evaluation=few, training=dataclasses.replace(
      experiment.training, steps=1))
  with tempfile.TemporaryDirectory() as folder:
    return run(one, pathlib.Path(folder))
