"""An interrupted run that resumes equals the one that never stopped, to the bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from entrolab.trainer.log import WALL

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 12


def start(folder, config="experiments/siren.py", every=1):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  settings = ["sampling.prompts=8", "evaluation.problems=8", f"training.steps={STEPS}",
              "evaluation.every=5", f"saving.every={every}", "saving.keep=3"]
  args = [x for s in settings for x in ("--set", s)]
  return subprocess.Popen([sys.executable, "-m", "entrolab.main", f"--config={config}", *args,
                           f"--workdir={folder}"], cwd=ROOT, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
  text = process.communicate(timeout=300)[0]
  assert process.returncode == 0, text
  return text


def rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines() if (
      folder / "metrics.jsonl").exists() else []
  found = []
  for line in lines:
    try:
      row = json.loads(line)
    except json.JSONDecodeError:  # the line that is being written
      break
    found.append({k: v for k, v in row.items() if not k.startswith(WALL)})
  return found


def wait_for(process, folder, count):
  end = time.time() + 200
  while len(rows(folder)) < count:
    assert process.poll() is None, process.communicate()[0]
    assert time.time() < end, "no progress"
    time.sleep(0.01)


def state(folder):
  with ocp.CheckpointManager((folder / "checkpoints").resolve()) as manager:
    assert manager.latest_step() == STEPS
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
    got = manager.restore(STEPS, args=args)
    return got["state"], got["meta"]["data"], got["meta"]["progress"]["tokens"]


def same(a, b):
  assert rows(a) == rows(b)
  names = sorted(p.name for p in (a / "samples").iterdir())
  assert names == sorted(p.name for p in (b / "samples").iterdir()) and len(names) >= 3
  for name in names:
    assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes()
  (ours, data, tokens), (theirs, their_data, their_tokens) = state(a), state(b)
  assert data == their_data and tokens == their_tokens
  assert ours.keys() == theirs.keys() and len(ours) > 20
  for name, leaf in ours.items():
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(theirs[name]), err_msg=name)
  assert any(name.startswith("control.anchor") for name in ours)
  assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(ours))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole") / "run"
  finish(start(folder))
  return folder


def test_killed_at_a_random_moment(whole, tmp_path):
  """kill -9 at a random step and a random part of it, twice; then the same command."""
  chance = random.SystemRandom()
  for _ in range(2):
    process = start(tmp_path / "run", every=chance.choice([1, 2]))
    wait_for(process, tmp_path / "run", len(rows(tmp_path / "run")) + chance.randint(2, 4))
    time.sleep(chance.random())
    process.kill()
    process.communicate()
  assert "resuming" in finish(start(tmp_path / "run"))
  same(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves(whole, tmp_path, number):
  process = start(tmp_path / "run", every=0)
  wait_for(process, tmp_path / "run", 3)
  process.send_signal(number)
  text = process.communicate(timeout=200)[0]
  assert process.returncode == 130 and "the same command resumes" in text, text
  assert "resuming" in finish(start(tmp_path / "run", every=0))
  same(whole, tmp_path / "run")
