"""Several processes with jax.distributed on one machine, as several hosts of a pod would be."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from entrolab.trainer.log import WALL

pytestmark = pytest.mark.slow  # minutes on two cores

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("sampling.prompts=8", "training.steps=2", "training.updates=2", "evaluation.problems=5",
         "evaluation.ks=(1,)", "evaluation.samples=2", "saving.every=1", "saving.keep=9")
BOUND_S = 150  # in which the others end when a host is gone: the heartbeat's limit, and slack
# the command line, after changes to the program of one process
MAIN = """
import sys
from absl import app
from entrolab import main, sharding
from entrolab.trainer import loop
rank = int(__import__("os").environ["ENTROLAB_PROCESS"])
{change}
app.run(main.main, ["main", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """Programs that the jobs of this file share."""
  return os.environ.get("JAX_COMPILATION_CACHE_DIR") or tmp_path_factory.mktemp("compiled")


class Job:
  """n processes of one run, with `devices` CPU devices each."""

  def __init__(self, folder, compiled, n, *sets, devices=2, change="", each=lambda rank: ()):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self.outputs, self.processes = [], []
    for rank in range(n):
      env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
      env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
              "JAX_COMPILATION_CACHE_DIR": str(compiled),
              "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
      if n > 1:
        env |= {"ENTROLAB_COORDINATOR": f"localhost:{port}", "ENTROLAB_PROCESSES": str(n)}
      env["ENTROLAB_PROCESS"] = str(rank)
      args = [f"--set={text}" for text in (*SMALL, *sets, *each(rank))]
      self.outputs.append(open(folder.with_suffix(f".{rank}.out"), "w+"))
      self.processes.append(subprocess.Popen(
          [sys.executable, "-c", MAIN.format(change=change), "--config=experiments/siren.py",
           *args, f"--workdir={folder}"], cwd=ROOT, env=env, stdout=self.outputs[-1],
          stderr=subprocess.STDOUT, text=True))

  def text(self, rank):
    """What a process has said so far."""
    return Path(self.outputs[rank].name).read_text()

  def codes(self, timeout=3600):
    """Exit codes, in the order of processes; kills what outlives the limit (None)."""
    end = time.monotonic() + timeout
    found = []
    for process in self.processes:
      try:
        found.append(process.wait(max(0.1, end - time.monotonic())))
      except subprocess.TimeoutExpired:
        found.append(None)
    for process in self.processes:
      process.kill()
      process.wait()
    for file in self.outputs:
      file.close()
    return found

  def wait_for(self, folder, rows, timeout=3600):
    """Until metrics.jsonl has so many lines."""
    end = time.monotonic() + timeout
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < rows:
      assert all(p.poll() is None for p in self.processes), self.text(0)
      assert time.monotonic() < end
      time.sleep(0.05)


def run(folder, compiled, n, *sets, **options):
  job = Job(folder, compiled, n, *sets, **options)
  assert job.codes() == [0] * n, "\n".join(map(job.text, range(n)))
  return job


def rows(folder):
  return [{k: v for k, v in json.loads(line).items() if not k.startswith(WALL)}
          for line in (folder / "metrics.jsonl").read_text().splitlines()]


def samples(folder):
  """A list of rows a step: of its first prompts."""
  return [[json.loads(line) for line in path.read_text().splitlines()]
          for path in sorted((folder / "samples").iterdir())]


def leaves(folder, step):
  """Leaves of a checkpoint as numpy arrays, whatever devices of how many processes wrote it."""
  path = (folder / "checkpoints" / str(step) / "state").resolve()
  with ocp.PyTreeCheckpointer() as reader:
    kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray)
             for name in reader.metadata(path).item_metadata.tree}
    return reader.restore(path, ocp.args.PyTreeRestore(restore_args=kinds))


def same_up_to_rounding(ours, theirs):
  """Equal keys, data and selection; floats as close as sums in another order are."""
  for a, b in zip(rows(ours), rows(theirs), strict=True):
    assert a.keys() == b.keys()
    for name in a:
      if name.startswith(("eval/", "reward/", "tokens", "response_length/", "rollout/groups")):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
      elif a[name] is not None and name != "sampling/logp_difference/count":  # of last bits
        np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=2e-5, err_msg=name)
  for step, whole in zip(samples(ours), samples(theirs), strict=True):
    assert len(step) > 0
    for a, b in zip(step, whole, strict=True):
      assert (a["prompt"], a["ids"], a["verdict"]) == (b["prompt"], b["ids"], b["verdict"])
  for (name, a), b in zip(leaves(ours, 2).items(), leaves(theirs, 2).values(), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, compiled):
  """The same run in one process."""
  folder = tmp_path_factory.mktemp("alone") / "run"
  run(folder, compiled, 1, devices=4)
  return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory, compiled):
  """The run in two processes of two devices."""
  folder = tmp_path_factory.mktemp("pair") / "run"
  run(folder, compiled, 2)
  return folder


def test_two_processes_train_as_one_does(alone, pair):
  same_up_to_rounding(pair, alone)
  assert len(rows(pair)) == 4 and leaves(pair, 2)["step"] == 4


DIFFER = """
loop.AGREE_EVERY = 1
if rank == 1:
  step_of = loop.train_step
  def train_step(lab, *rest):
    out = step_of(lab, *rest)
    {spoil}
    return out
  loop.train_step = train_step
"""
SPOIL = {"the data position": "next(lab.data)",
         "the key": "import jax; lab.key = jax.random.key(9)"}


@pytest.mark.parametrize("what", SPOIL)
@pytest.mark.slow
def test_a_host_that_drifts_is_named(tmp_path, compiled, what):
  job = Job(tmp_path / "run", compiled, 2, change=DIFFER.format(spoil=SPOIL[what]))
  assert all(job.codes(timeout=300))
  host = socket.gethostname()
  for rank in range(2):
    assert (f"after step 1: process 1 on host {host} differs from process 0 in {what}; here, "
            f"process {rank} has ") in job.text(rank)


def test_another_configuration_on_one_host_is_named_at_the_start(tmp_path, compiled):
  job = Job(tmp_path / "run", compiled, 2,
            each=lambda rank: ["training.lr=1e-3"] if rank else [])
  assert all(job.codes(timeout=300))
  for rank in range(2):
    assert "at the start: process 1 on host" in job.text(rank), job.text(rank)
    assert "in the configuration;" in job.text(rank)
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("n, devices, sets", [
    (4, 1, ()), (4, 1, ("mesh.fsdp=4",)), (2, 2, ("mesh.tensor=2",)),
    (2, 2, ("sampling.slots=32",)),
    (2, 2, ("sampling.slots=16", "mesh.fsdp=2", "mesh.tensor=2")),
    # `tensor` over processes: several of them hold the same rows
    (2, 1, ("mesh.tensor=2",)), (4, 1, ("mesh.fsdp=2", "mesh.tensor=2"))])
def test_more_processes_and_sharded_parameters(alone, tmp_path, compiled, n, devices, sets):
  run(tmp_path / "run", compiled, n, *sets, devices=devices)
  same_up_to_rounding(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_dead_host_ends_the_others_and_the_job_resumes(pair, tmp_path, compiled):
  folder = tmp_path / "run"
  job = Job(folder, compiled, 2, "training.steps=40")
  job.wait_for(folder, 3)
  job.processes[1].send_signal(signal.SIGKILL)
  begin = time.monotonic()
  codes = job.codes(timeout=BOUND_S)
  assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None), job.text(0)
  print(f"ended after {time.monotonic() - begin:.0f} s")
  before = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
  steps = f"training.steps={before + 1}"
  resumed = run(folder, compiled, 2, steps)
  assert f"resuming {folder} after step {before}" in resumed.text(0)
  # to the bit: the steps that both did
  ours, theirs = rows(folder), rows(pair)
  assert ours[:3] == theirs[:3]
  for name, leaf in leaves(pair, 2).items():
    np.testing.assert_array_equal(leaf, leaves(folder, 2)[name], err_msg=name)


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others(tmp_path, compiled):
  change = """
if rank == 1:
  def train_step(*rest):
    raise ValueError("no such row")
  loop.train_step = train_step
"""
  job = Job(tmp_path / "run", compiled, 2, change=change)
  codes = job.codes(timeout=BOUND_S + 60)
  assert None not in codes and 0 not in codes, codes
  assert "error: no such row" in job.text(1)


@pytest.mark.slow
def test_a_signal_to_one_host_saves_on_all(tmp_path, compiled):
  folder = tmp_path / "run"
  job = Job(folder, compiled, 2, "training.steps=40", "saving.every=0")
  job.wait_for(folder, 3)
  job.processes[1].send_signal(signal.SIGTERM)
  assert job.codes(timeout=300) == [130, 130], job.text(0) + job.text(1)
  assert "the same command resumes" in job.text(0)


@pytest.mark.slow
def test_a_checkpoint_that_one_host_cannot_read_is_passed_over_by_all(pair, tmp_path, compiled):
  import shutil
  folder = Path(shutil.copytree(pair, tmp_path / "run"))
  path = max((folder / "checkpoints/2/state").rglob("*"), key=lambda p: p.stat().st_size)
  path.write_bytes(path.read_bytes()[:1000])
  job = run(folder, compiled, 2)
  for rank in range(2):
    assert "going back to the checkpoint of step 1" in job.text(rank)
  assert rows(folder) == rows(pair)
