"""Whatever happens to a checkpoint, a run goes back to an older one aloud or stops; never anew."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from entrolab import config, sharding
from entrolab.experiment import Saving
from entrolab.tasks.countdown import Countdown
from entrolab.trainer import checkpoint, log, loop
from entrolab.trainer.log import WALL
from entrolab.trainer.state import check_finite

pytestmark = pytest.mark.usefixtures("libraries_promote")

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "experiments/siren.py"
SMALL = ("sampling.prompts=4", "training.updates=1", "training.measure_every=0",
         "evaluation.problems=4", "evaluation.ks=(1,)", "evaluation.samples=1", "saving.every=1",
         "saving.keep=3", "training.steps=3", "mesh.data=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled):
  """A run of three steps with a checkpoint of each."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  loop.run(config.load(RECIPE, SMALL), folder)
  return folder


@pytest.fixture(scope="module")
def like():
  """The state at step 0."""
  lab = loop.Lab(config.load(RECIPE, SMALL))
  return lab.learner.init(lab.params)


@pytest.fixture
def run(whole, tmp_path):
  """A copy of the run, to break."""
  return Path(shutil.copytree(whole, tmp_path / "run"))


def restored(run, like):
  saved = checkpoint.Checkpoints(run / "checkpoints", Saving())
  try:
    found = saved.restore(lambda meta: like)
    assert found is not None
    return found
  finally:
    saved.close()


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
  path = largest(folder)
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip(folder):
  path = largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  path.write_bytes(data)


def edit_meta(folder):
  path = folder / "meta" / "metadata"
  path.write_text(path.read_text().replace('"cursor": ', '"cursor": 1', 1))


HARM = {
    "truncated array file": (truncate, r"step 3: \w+: "),
    "missing shard": (lambda f: largest(f).unlink(), r"step 3: \w+: "),
    "flipped bit": (flip, r"the bits of [\w.]+ are not those that were saved"),
    "no commit marker": (lambda f: (f / "commit_success.txt").unlink(), "no commit marker"),
    "no commit stamp": (lambda f: (f / "_CHECKPOINT_METADATA").unlink(), "no commit marker"),
    "no state": (lambda f: shutil.rmtree(f / "state"), "KeyError"),
    "no meta": (lambda f: shutil.rmtree(f / "meta"), "meta: FileNotFoundError"),
    "half of the meta": (lambda f: (f / "meta/metadata").write_text('{"cur'), "JSONDecodeError"),
    "changed meta": (edit_meta, "meta: is not what was saved"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "no commit marker"),
    "a file in its place": (lambda f: (shutil.rmtree(f), f.write_text("x")), "no commit marker"),
}


@pytest.mark.parametrize("harm, said", HARM.values(), ids=HARM)
def test_what_is_not_whole_is_named_and_passed_over(run, like, caplog, harm, said):
  harm(run / "checkpoints" / "3")
  step, state, meta = restored(run, like)
  assert step == 2 and meta["progress"]["step"] == 2
  assert checkpoint.mismatch(meta["leaves"], checkpoint.by_path(state)) is None
  assert re.search(rf"checkpoints/3 is not whole: step 3: .*{said.removeprefix('step 3: ')}",
                   caplog.text), caplog.text
  assert "going back to the checkpoint of step 2" in caplog.text
  # nothing is thrown away
  assert [p.name for p in (run / "checkpoints.broken").iterdir()] == ["3-0"]
  assert not (run / "checkpoints" / "3").exists()


def test_two_broken_ones_and_then_all(run, like, caplog):
  for step, harm in ((3, truncate), (2, flip)):
    harm(run / "checkpoints" / str(step))
  assert restored(run, like)[0] == 1
  assert sorted(p.name for p in (run / "checkpoints.broken").iterdir()) == ["2-1", "3-0"]
  truncate(run / "checkpoints" / "1")
  with pytest.raises(OSError, match=r"no checkpoint in .* can be read; move the folder away(.|\n)*"
                                    r"step 1: "):
    restored(run, like)
  assert (run / "checkpoints" / "1").exists()  # nothing was started anew, nothing moved


def test_other_leaves_are_named(run, like):
  def renamed(tree):
    tree = dict(tree)
    tree["norm"] = tree.pop("final_norm")
    return tree

  other = dataclasses.replace(like, params=renamed(like.params))
  with pytest.raises(OSError, match=r"step 3: has no leaf params.norm; has params.final_norm "
                                    r"instead(.|\n)*step 1: has no leaf"):
    restored(run, other)
  wide = dataclasses.replace(like, params={**like.params, "final_norm": jnp.ones(7)})
  with pytest.raises(OSError, match=r"leaf params.final_norm is float32\[128\] there and "
                                    r"float32\[7\] in this run"):
    restored(run, wide)
  half = dataclasses.replace(like, params={
      **like.params, "final_norm": jnp.ones(128, jnp.bfloat16)})
  with pytest.raises(OSError, match=r"is float32\[128\] there and bfloat16\[128\]"):
    restored(run, half)
  assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2", "3"]


def rows(folder):
  return [{k: v for k, v in json.loads(line).items() if not k.startswith(WALL)}
          for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_whose_newest_checkpoint_broke_ends_like_one_that_never_stopped(
    whole, run, like, caplog, capsys):
  flip(run / "checkpoints" / "3")
  loop.run(config.load(RECIPE, SMALL), run)
  assert "going back to the checkpoint of step 2" in caplog.text
  assert "resuming" in capsys.readouterr().out
  assert rows(run) == rows(whole)
  (_, ours, _), (_, theirs, _) = restored(run, like), restored(whole, like)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_other_mathematics_are_refused_leaf_by_leaf_and_recorded_when_allowed(run, caplog):
  changed = config.load(f"{RECIPE}:beta=0.25,seed=3", (*SMALL, "training.lr=1e-4",
                                                       "evaluation.problems=8"))
  with pytest.raises(ValueError) as refused:
    loop.run(changed, run)
  leaves = {line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]}
  assert leaves == {"objective.penalties.0.beta", "seed", "training.lr"}
  assert "--allow_config_change" in str(refused.value)
  assert rows(run)[-1]["step"] == 3  # and nothing was touched
  with pytest.raises(ValueError, match="the saved position is in"):  # a seed is also other data
    loop.run(changed, run, allow_config_change=True)
  more = config.load(RECIPE, (*SMALL, "training.steps=4", "sampling.temperature=0.5"))
  loop.run(more, run, allow_config_change=True)
  saved = json.loads((run / "checkpoints/4/meta/metadata").read_text())["progress"]["changes"]
  assert saved == ["sampling.temperature: 1.0 -> 0.5"]
  assert json.loads((run / "config.json").read_text())["changes"] == saved


def test_metrics_without_a_checkpoint_are_not_overwritten_in_silence(run, capsys):
  shutil.rmtree(run / "checkpoints")
  loop.run(config.load(RECIPE, (*SMALL, "training.steps=1")), run)
  assert "has metrics and no checkpoint: starting anew" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_finite_is_passed_over(run, like, caplog):
  step, state, meta = restored(run, like)
  spoilt = dataclasses.replace(state, params={
      **state.params, "embed": state.params["embed"].at[3].set(jnp.nan)})
  with pytest.raises(FloatingPointError, match=r"step 4: parameters.embed not finite"):
    check_finite(spoilt, "no checkpoint is written of step 4")
  saved = checkpoint.Checkpoints(run / "checkpoints", Saving(keep=3))
  saved.save(4, spoilt, {"progress": meta["progress"]})  # around the check
  saved.close()
  assert restored(run, like)[0] == step == 3
  assert "params.embed: not finite" in caplog.text


NUL = "\0"
LOST = {
    "deleted": lambda path: path.unlink(),
    "cut in a row": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "only the first rows": lambda path: path.write_text(
        "".join(path.read_text().splitlines(keepends=True)[:2])),
    "filled with zeros": lambda path: path.write_text(NUL * len(path.read_text())),
}


@pytest.mark.parametrize("harm", LOST)
def test_metrics_that_are_lost_are_rebuilt_and_it_is_said(run, capsys, harm):
  path = run / "metrics.jsonl"
  whole_file = path.read_bytes()
  meta = json.loads((run / "checkpoints/3/meta/metadata").read_text())
  cursor, before = meta["cursor"], meta["progress"]["before"]
  LOST[harm](path)
  if harm == "cut in a row":  # into what the checkpoint was written with
    path.write_bytes(whole_file[:cursor - 40])
  log.Log(run, cursor, 3, before).close()
  assert "rebuilt from what can be read; no row for" in capsys.readouterr().out
  found = rows(run)
  assert found[0]["step"] == 0 and found[0]["eval/entropy"] == before["eval/entropy"]
  steps = [row["step"] for row in found]
  assert steps == sorted(set(steps)) and steps[-1] < 3


def test_metrics_that_are_there_are_cut_to_the_bit(run, capsys):
  path = run / "metrics.jsonl"
  cursor = json.loads((run / "checkpoints/3/meta/metadata").read_text())["cursor"]
  whole_file = path.read_bytes()
  assert cursor < len(whole_file)  # the evaluation after training came later
  log.Log(run, cursor, 3, {}).close()
  assert path.read_bytes() == whole_file[:cursor] and "rebuilt" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_its_metrics_goes_on_to_its_end(run, capsys):
  (run / "metrics.jsonl").unlink()
  assert loop.run(config.load(RECIPE, (*SMALL, "training.steps=4")), run)["finished"]
  assert "no row for 3 of its steps, 1 to 3" in capsys.readouterr().out
  assert [row["step"] for row in rows(run)] == [0, 4, 4]


@dataclasses.dataclass(frozen=True)
class OnFile(Countdown):
  """A task whose rows are in a file."""
  content: ClassVar[str] = "a1"

  def identity(self) -> str:
    return self.content


def test_a_changed_data_file_is_refused_or_recorded(monkeypatch):
  experiment = config.load(RECIPE, SMALL)
  experiment = dataclasses.replace(experiment, task=OnFile())
  meta = json.loads(json.dumps({"mathematics": config.mathematics(experiment), "identity": "a1"}))
  assert loop.check_same(experiment, meta, False) == []
  monkeypatch.setattr(OnFile, "content", "b2")
  with pytest.raises(ValueError, match=r"the rows of OnFile\(.*was a1, is b2.*--allow_config"):
    loop.check_same(experiment, meta, False)
  assert loop.check_same(experiment, meta, True) == ["content of the data: sha256 a1 -> b2"]
  with pytest.raises(ValueError, match="was not recorded, is b2"):
    loop.check_same(experiment, {**meta, "identity": ""}, False)


CHILD = """
import os, resource, signal, sys, time
import jax, jax.numpy as jnp
from pathlib import Path
from entrolab.trainer import checkpoint
from entrolab.experiment import Saving
saved = checkpoint.Checkpoints(Path(sys.argv[1]) / "checkpoints", Saving(keep=1))
state = {"params": {"w": jax.random.normal(jax.random.key(0), (int(sys.argv[3]),))}}
saved.save(1, state, {"cursor": 1})
saved.manager.wait_until_finished()
"""
FULL = """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
saved.save(2, state, {"cursor": 2})
try:
  saved.close()
except OSError as error:
  print(error)
"""
KILL = """
saved.save(2, state, {"cursor": 2})
os.kill(os.getpid(), signal.SIGKILL)
"""
HOLD = """
print("holding", flush=True)
time.sleep(60)
"""


def child(code, folder, size=1_000_000):
  # one device, and programs that round as those of this process do
  flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
  env = {**os.environ, "XLA_FLAGS": " ".join(flags)}
  env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen([sys.executable, "-c", CHILD + code, str(folder), "", str(size)],
                          env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def only(folder):
  """(step, w) of the checkpoints of a child."""
  saved = checkpoint.Checkpoints(folder / "checkpoints", Saving(keep=1))
  like = {"params": {"w": jnp.zeros(json.loads((folder / "checkpoints/1/meta/metadata").read_text()
                                               )["leaves"]["params.w"][0])}}
  try:
    found = saved.restore(lambda meta: like)
    assert found is not None
    return found[0], np.asarray(found[1]["params"]["w"])
  finally:
    saved.close()


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(tmp_path, caplog):
  out, err = child(FULL, tmp_path).communicate(timeout=200)
  assert "a checkpoint could not be written" in out and "whole is of step 1" in out, out + err
  assert "File too large" in out
  step, w = only(tmp_path)
  assert step == 1
  np.testing.assert_array_equal(w, jax.random.normal(jax.random.key(0), w.shape))
  assert "removing a save that was not finished" in caplog.text
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_kill_during_a_save_keeps_the_checkpoint_before(tmp_path, caplog):
  process = child(KILL, tmp_path, size=20_000_000)
  assert process.wait(timeout=200) == -signal.SIGKILL, process.communicate()[1]
  left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert left[0] == "1" and checkpoint.UNFINISHED in left[1]
  assert only(tmp_path)[0] == 1
  assert "removing a save that was not finished" in caplog.text
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_second_writer_is_refused_until_the_first_ends_however_it_ends(tmp_path):
  process = child(HOLD, tmp_path, size=10)
  assert process.stdout and process.stdout.readline() == "holding\n", process.communicate()[1]
  with pytest.raises(OSError, match=rf"is being written by process {process.pid} on "):
    only(tmp_path)
  reader = checkpoint.Checkpoints(tmp_path / "checkpoints")  # reading is free
  assert reader.steps == [1]
  process.kill()
  process.communicate()
  assert only(tmp_path)[0] == 1


def test_an_export_refuses_what_is_not_whole(run, like):
  read = lambda: checkpoint.Checkpoints(run / "checkpoints").params(like.params)
  assert jax.tree.structure(read()) == jax.tree.structure(like.params)
  flip(run / "checkpoints" / "3")
  with pytest.raises(OSError, match="checkpoints/3 is not whole: the bits of"):
    read()


def test_fingerprints_see_every_bit_and_no_sharding():
  x = jax.random.normal(jax.random.key(1), (16, 6))
  bits = np.asarray(x).view(np.uint32)
  print_of = lambda array: int(checkpoint.fingerprints({"x": jnp.asarray(array)})["x"])
  first, seen = print_of(x), set()
  for bit in range(32):
    for at in ((0, 0), (15, 5), (7, 3)):
      changed = bits.copy()
      changed[at] ^= np.uint32(1 << bit)
      seen.add(print_of(changed.view(np.float32)))
  assert first not in seen and len(seen) > 90
  assert print_of(np.asarray(x)[::-1]) != first and print_of(np.asarray(x).T) != first
  mesh = sharding.make_mesh(2, 2, 2)
  for spec in (PartitionSpec(("data", "fsdp"), "tensor"), PartitionSpec(None, "tensor")):
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    assert int(checkpoint.fingerprints({"x": placed})["x"]) == first
  for leaf in (jnp.arange(5), jnp.ones(3, bool), jnp.ones(3, jnp.bfloat16), jnp.uint32(7)):
    assert print_of(leaf) != 0


@pytest.mark.slow
def test_kill_drill():
  """As scripts/kill_drill.py does with 20 kills: in sampling, verifying, the step and a save."""
  done = subprocess.run([sys.executable, "scripts/kill_drill.py", "--kills=4", "--chain=4",
                         "--seed=1"], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  summary = json.loads(done.stdout.splitlines()[-1])
  assert summary["identical"] and summary["kills"] == 4 and summary["leaves"] > 20
