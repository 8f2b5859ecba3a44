"""The command line as a user types it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = ("--set", "sampling.prompts=4", "--set", "training.updates=2", "--set",
         "evaluation.problems=8", "--set", "training.steps=2")


def call(*args, cwd=ROOT, timeout=300):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return subprocess.run([sys.executable, "-m", "entrolab.main", *args], cwd=cwd, env=env,
                        capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("args, said", [
    ((), "--config is needed; choices here: experiments/"),
    (("--config=experiments/sirenn.py",), "did you mean 'experiments/siren.py'"),
    (("--config=experiments/siren.py:beat=1",), "unknown knob 'beat'; did you mean 'beta'"),
    (("--config=experiments/siren.py", "--set", "training.lrr=1"), "did you mean 'lr'"),
    (("--config=experiments/siren.py", "--wrokdir=x"), "workdir"),
    (("--config=experiments/siren.py", "extra"), "unknown argument 'extra'"),
    (("--config=experiments/toy.py:preset=qwen3-4b", "--set", "mesh.fsdp=1", "--set",
      "mesh.tensor=1"), "ENTROLAB_MODELS"),
    (("--config=experiments/toy.py", "--set", "mesh.tensor=3"), "number of devices"),
])
def test_mistakes_stop_with_one_line_and_the_choices(args, said):
  done = call(*args)
  assert done.returncode != 0 and said in done.stderr + done.stdout
  assert "Traceback" not in done.stderr


def test_help_names_every_flag():
  done = call("--help")
  for flag in ("config", "set", "workdir", "explain", "dry_run", "allow_config_change",
               "compile_cache"):
    assert f"--[no]{flag}:" in done.stdout or f"--{flag}:" in done.stdout, flag


def test_explain_prints_the_plan_and_runs_nothing(tmp_path):
  done = call("--config=experiments/kl_cov.py", "--set", "training.updates=1", "--explain",
              f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  for part in ("32 prompts x 8 samples = 256 responses; 1 update of 256 responses, each in 1",
               "0.80 M parameters", "key-value cache", "kl_cov.distance is identically zero"):
    assert part in done.stdout, part
  assert not (tmp_path / "run").exists()


def test_dry_run_leaves_nothing(tmp_path):
  done = call(f"--config={ROOT / 'experiments/siren.py'}", *SMALL, "--dry_run", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "everything compiled and one step ran" in done.stdout
  assert not list(tmp_path.iterdir())


def test_a_run_leaves_everything_and_the_same_command_has_nothing_left_to_train(tmp_path):
  args = ("--config=experiments/siren.py", *SMALL, f"--workdir={tmp_path / 'run'}")
  done = call(*args)
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "run"
  for name in ("config.json", "metrics.jsonl", "samples/step_000001.jsonl", "report.html",
               "checkpoints/2", "events"):
    assert (folder / name).exists(), name
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [0, 1, 2, 2]
  for name in ("entropy/exact", "entropy/sequence", "entropy/surprisal", "entropy/truncated@0.8",
               "entropy/measured", "theory/covariance", "method/tokens_changed",
               "rollout/groups_with_signal", "sampling/logp_difference/max", "reward/unknown",
               "tokens", "seconds"):
    assert isinstance(lines[1][name], float | int), name
  assert lines[1]["sampling/logp_difference/max"] < 1e-4
  assert "eval/pass@16" in lines[0] and "eval/greedy_low" in lines[3]
  sample = json.loads((folder / "samples/step_000001.jsonl").read_text().splitlines()[0])
  assert len(sample["tokens"]) == len(sample["entropy"]) == len(sample["ids"]) > 3
  assert "pass@1 0." in done.stdout and "report: " in done.stdout
  events = next((folder / "events").glob("events*"))
  assert b"entropy/exact" in events.read_bytes()

  again = call(*args)
  assert again.returncode == 0 and "nothing left to train" in again.stdout
  assert (folder / "metrics.jsonl").read_text().count("\n") == 4
  refused = call(*args, "--set", "training.lr=1e-3")
  assert refused.returncode != 0 and "training.lr: 5e-05 -> 0.001" in refused.stderr
  allowed = call(*args, "--set", "training.lr=1e-3", "--set", "training.steps=3",
                 "--allow_config_change")
  assert allowed.returncode == 0, allowed.stderr
  assert "resuming" in allowed.stdout and "step 3/3" in allowed.stdout
  assert json.loads((folder / "config.json").read_text())["changes"] == [
      "training.lr: 5e-05 -> 0.001"]
