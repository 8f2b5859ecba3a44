"""A run, read top to bottom: restore, evaluate, train, evaluate; then what these use."""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from entrolab import config, sharding
from entrolab.experiment import Experiment
from entrolab.rollout import compilations
from entrolab.trainer import alarms, checkpoint, explain, ledger, log, report
from entrolab.trainer.files import check_shared, scratch, write_text
from entrolab.trainer.state import State, check_finite
from entrolab.trainer.step import Lab, train_step

AGREE_EVERY = 10  # steps between checks that all hosts have the same state
PATIENCE = 5  # steps in a row with an update that was not finite, before the run stops

# ---- The run -----------------------------------------------------------------------------------


def run(experiment: Experiment, folder: pathlib.Path, *, allow_config_change: bool = False,
        source: dict[str, Any] | None = None) -> dict[str, Any]:
  """Trains, or goes on training, in `folder`; {"before", "after", "finished"}.

  source: the command's `config` and `set`, for config.json. Raises ValueError when the folder holds
  a run of another configuration, FloatingPointError after PATIENCE steps in a row that were not
  finite.
  """
  started = time.time()
  folder.mkdir(parents=True, exist_ok=True)
  check_shared(folder)
  lab = Lab(experiment)
  sharding.agree({"the configuration": config.config_hash(experiment),
                  "the mesh": dict(lab.mesh.shape), "the data": lab.data.name,
                  "the content of the data": experiment.task.identity()})
  print("\n".join([explain.batch_sentence(experiment), *lab.facts.sentences()]), flush=True)
  for sentence in (*explain.warnings(experiment), *explain.lengths(experiment, lab.config)):
    print(f"note: {sentence}", flush=True)

  saved = checkpoint.Checkpoints(folder / "checkpoints", experiment.saving)
  state, progress, cursor = start_or_resume(lab, saved, folder, allow_config_change)
  check_hosts(lab, state, f"before step {progress.step}")
  check_finite(state, f"nothing can be learned before step {progress.step}")
  if jax.process_index() == 0:
    described = {**describe(lab, source), "changes": progress.changes}
    write_text(folder / "config.json", json.dumps(described, indent=1) + "\n")

  out = log.Log(folder, cursor, progress.step, progress.before)
  session = Session(lab, progress, saved, out, started - progress.seconds)
  try:
    result = loop(session, state)
  finally:
    saved.close()
    out.close()
  if jax.process_index() == 0:
    print(f"report: {report.write(folder)}", flush=True)
  return result


def loop(session: "Session", state: State) -> dict[str, Any]:
  """Evaluates, trains to the last step or to a signal, evaluates; saves whenever it leaves."""
  lab, progress = session.lab, session.progress
  steps = lab.experiment.training.steps
  trained_before = progress.step >= steps and progress.before is not None
  if trained_before:
    print(f"nothing left to train: all {steps} steps are done (a larger training.steps goes on); "
          "evaluating again", flush=True)
  if progress.before is None:
    progress.before, progress.values = lab.evaluated(state.params)
    session.write(0, progress.before)
    print(f"before: pass@1 {progress.before.get('eval/pass@1', float('nan')):.3f}  "
          f"entropy {progress.before['eval/entropy']:.3f}{log.left_out(progress.before)}",
          flush=True)

  with stop_signals() as stopped:
    # hosts agree on it, since a signal may reach one of them alone
    stopping = lambda: bool(sharding.where(bool(stopped)))
    state = train(session, state, stopping)
    if stopping():
      if not trained_before:
        session.save(state)
      print(f"saved after step {progress.step}; the same command resumes", flush=True)
      return {"before": progress.before, "after": None, "finished": False}
  if not trained_before:
    session.save(state)  # what follows is a function of what is saved: a kill in it loses nothing

  after, _ = lab.evaluated(state.params, progress.values)
  session.write(progress.step, after)
  print(f"before -> after {progress.step} steps, 95 % intervals over {len(lab.problems)} problems"
        f"{log.left_out(after)}\n"
        f"  {log.verdict(progress.before, after, lab.experiment.evaluation.ks)}", flush=True)
  return {"before": progress.before, "after": after, "finished": True}


def train(session: "Session", state: State, stopping: Callable[[], bool]) -> State:
  """Steps up to the last one, or until it is to stop; the state after them."""
  lab, progress, out = session.lab, session.progress, session.out
  experiment = lab.experiment
  steps = experiment.training.steps
  sampled_every = max(steps // 8, 1)  # steps between those whose responses are logged
  programs = None  # compiled by the end of the first step; None: count anew
  assert progress.before is not None  # `loop` evaluates first
  if progress.step < steps:
    print(log.LEGEND, flush=True)

  while progress.step < steps and not stopping():
    start = time.time()
    state, rollout, metrics = train_step(lab, state, progress.step, out.folder)
    progress.step += 1
    progress.tokens += metrics["rollout/sampled_tokens"]
    progress.failed = 0 if metrics["train/applied"] == 1.0 else progress.failed + 1
    if progress.step % AGREE_EVERY == 0:
      check_hosts(lab, state, f"after step {progress.step}")

    if ledger.due(experiment, progress.step - 1):
      programs = None  # an account compiles programs for its states
    programs = programs or compiled(lab)
    metrics |= recompilations(lab, programs)
    progress.alarms = alarms.watch(experiment, progress.step, progress.before, metrics,
                                   rollout.verdicts, progress.alarms)
    metrics |= alarms.as_metrics(progress.alarms)
    every = experiment.evaluation.every
    if every and progress.step % every == 0 and progress.step < steps:
      metrics |= lab.evaluated(state.params, progress.values)[0]
      programs = None  # an evaluation compiles programs for its shapes

    session.write(progress.step, metrics)
    left = (time.time() - start) * (steps - progress.step)
    print(log.line(progress.step, steps, metrics, left), flush=True)
    if progress.step in (1, steps) or progress.step % sampled_every == 0:
      out.samples(progress.step, rollout, lab.tokenizer, experiment.sampling.samples)
    if experiment.saving.every and progress.step % experiment.saving.every == 0:
      session.save(state)
    if progress.failed >= PATIENCE:
      raise FloatingPointError(f"step {progress.step - 1}: {PATIENCE} steps in a row were not "
                               f"finite; their batches are in {out.folder / 'failures'}")
  return state


def dry_run(experiment: Experiment, folder: pathlib.Path) -> dict[str, Any]:
  """Compiles everything and runs one step on a few problems, in a folder that is thrown away.

  folder: of the run that is tried; several processes put that folder beside it.
  """
  few = dataclasses.replace(experiment.evaluation, problems=experiment.sampling.prompts)
  one_step = dataclasses.replace(experiment.training, steps=1)
  with scratch(folder) as place:
    return run(dataclasses.replace(experiment, evaluation=few, training=one_step), place)


# ---- What the loop knows, and where it writes --------------------------------------------------


@dataclasses.dataclass
class Progress:
  """What a run knows besides its state; in every checkpoint."""

  step: int = 0  # steps that were trained
  tokens: int = 0  # that were sampled in them
  seconds: float = 0.0  # of the run, up to the checkpoint
  before: dict[str, float] | None = None  # eval/* before training; None until it was evaluated
  # what `before` averages, of every problem, for paired changes; none in checkpoints of old
  values: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  changes: list[str] = dataclasses.field(default_factory=list)  # of the configuration, allowed
  failed: int = 0  # steps in a row that ended with an update that was not finite
  alarms: list[str] = dataclasses.field(default_factory=list)  # those that last


@dataclasses.dataclass
class Session:
  """A run in this process: what `loop` reads, moves and writes to."""

  lab: Lab  # model, task, engine and learner
  progress: Progress  # moved by every step
  saved: checkpoint.Checkpoints  # where checkpoints go
  out: log.Log  # where metrics and samples go
  started: float  # seconds since the epoch, less the seconds of the run before it was resumed

  def write(self, step: int, metrics: dict[str, Any]) -> None:
    """One line of metrics.jsonl, with tokens and seconds of the run so far."""
    self.out.write(step, {"tokens": self.progress.tokens,
                          "seconds": round(time.time() - self.started, 3), **metrics})

  def save(self, state: State) -> None:
    """Starts to write a checkpoint of the whole run. Raises FloatingPointError, and writes none,
    where its parameters or moments are not finite."""
    check_finite(state, f"no checkpoint is written of step {self.progress.step}")
    self.progress.seconds = time.time() - self.started
    self.saved.save(self.progress.step, self.lab.checkpoint_state(state), {
        "mathematics": config.mathematics(self.lab.experiment),
        "identity": self.lab.experiment.task.identity(),
        "data": self.lab.in_flight.position.decode(), "cursor": self.out.cursor,
        "progress": dataclasses.asdict(self.progress)})


# ---- Start and resume --------------------------------------------------------------------------


def start_or_resume(lab: Lab, saved: checkpoint.Checkpoints, folder: pathlib.Path,
                    allow_config_change: bool) -> tuple[State, Progress, int]:
  """(state, progress, bytes of metrics.jsonl that are of it): of the newest whole checkpoint, or of
  step 0 without any. Raises ValueError as `check_same`."""
  # from here on the parameters are on the devices: no process keeps a float32 model on its host
  params, lab.params = lab.params, None
  initial = lab.learner.init(params)
  del params
  changes: list[str] = []

  def like(meta):
    # only the checkpoint knows the shapes of what the strategy remembered
    changes[:] = check_same(lab.experiment, meta, allow_config_change)
    host = checkpoint.shapes_under(meta, "host.", sharding.whole(lab.mesh))
    return dataclasses.replace(initial, host=host)

  found = saved.restore(like)
  if found is None:
    if (folder / "metrics.jsonl").is_file():
      print(f"{folder} has metrics and no checkpoint: starting anew", flush=True)
    return initial, Progress(), 0
  _, state, meta = found
  progress = Progress(**{**meta["progress"], "changes": meta["progress"]["changes"] + changes})
  # rows that were drawn ahead go back to `in_flight`; the rest is what the strategy remembers
  host = {name: np.asarray(x) for name, x in state.host.items()}
  lab.host = lab.in_flight.resume(lab.key, progress.step, meta["data"].encode(), host)
  print(f"resuming {folder} after step {progress.step} of {lab.experiment.training.steps}",
        flush=True)
  return dataclasses.replace(state, host=None), progress, meta["cursor"]


def check_same(experiment: Experiment, meta: dict[str, Any], allow: bool) -> list[str]:
  """The leaves in which a saved run differs. Raises ValueError with them unless allowed.

  The content of the data is one of them: a position in other rows is another position.
  """
  was, content = meta.get("identity", ""), experiment.task.identity()
  replaced = []
  if was != content:
    replaced = [f"content of the data: sha256 {was or 'none'} -> {content or 'none'}"]
  if replaced and not allow:
    raise ValueError(f"the rows of {experiment.task!r} are not those that this run was started "
                     f"with (sha256 was {was or 'not recorded'}, is {content or 'not recorded'}); "
                     "put the old rows back, choose another --workdir, or --allow_config_change to "
                     "go on with the new rows and record the change")
  now = json.loads(json.dumps(config.mathematics(experiment)))
  changed = config.diff(meta["mathematics"], now)
  if changed and not allow:
    raise ValueError("this run was started with another configuration; choose another --workdir, "
                     "or --allow_config_change to go on and record the change:\n  "
                     + "\n  ".join(changed))
  return changed + replaced


def check_hosts(lab: Lab, state: State, when: str) -> None:
  """Raises RuntimeError naming host and value when the hosts of a run have drifted apart."""
  if jax.process_count() > 1:
    sharding.agree({
        "the configuration": config.config_hash(lab.experiment),
        "the data position": lab.data.get_state(),
        "the key": np.asarray(jax.random.key_data(lab.key)).tolist(),
        "what the rollout remembers": {name: zlib.crc32(x.tobytes())
                                       for name, x in lab.host.items()},
        "the parameters": checkpoint.fingerprint(state.params)}, when)


def describe(lab: Lab, source: dict[str, Any] | None) -> dict[str, Any]:
  """The content of config.json; source: the command's `config` and `set`, where there was one."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  return {"name": lab.experiment.name, "source": source,
          "hash": config.config_hash(lab.experiment),
          "experiment": config.to_dict(lab.experiment),
          "plan": explain.plan(lab.experiment, lab.config, lab.facts.sentences()),
          "data": {**lab.facts.as_json(), "identity": lab.experiment.task.identity()},
          "versions": {name: importlib.metadata.version(name) for name in packages},
          "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(),
                      "mesh": dict(lab.mesh.shape), "rates": dataclasses.asdict(lab.roofline.chip)}}


# ---- Signals and compilations ------------------------------------------------------------------


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """Yields a list that SIGINT or SIGTERM appends to; a second one ends the process at once."""
  received: list[int] = []
  previous = {}

  def handle(number, frame):
    del frame
    received.append(number)
    print(f"\n{signal.Signals(number).name}: saving after this step; once more to stop at once",
          flush=True)
    signal.signal(number, previous[number])

  for number in (signal.SIGINT, signal.SIGTERM):
    previous[number] = signal.signal(number, handle)
  try:
    yield received
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def compiled(lab: Lab) -> dict[str, int]:
  """Programs of sampler and update by now, under the names of `recompilations`. A program for a new
  shape of a packing plan has a name apart: packing compiles a few of them, by design."""
  shapes = len(lab.plan_shapes)
  counts = {"rollout/recompilations": compilations.total(),
            "train/recompilations": compilations.of(lab.learner.step) - shapes}
  if lab.experiment.training.packing:
    counts["train/recompilations_packing"] = shapes
  return counts


def recompilations(lab: Lab, programs: dict[str, int]) -> dict[str, int]:
  """Programs that were compiled since there were `programs`: after the first step, none should be.
  """
  return {name: count - programs[name] for name, count in compiled(lab).items()}
