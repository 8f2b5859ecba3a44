"""Groups of processes: their places for the device orders of real slices, what cannot be grouped,
and runs in several processes against one."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from entrolab import row_groups, sharding
from entrolab.batch import Batch
from entrolab.cost import chips
from entrolab.methods.aepo_agentic import Branching
from entrolab.rollout.agentic import Agentic
from entrolab.tasks import prompts
from entrolab.trainer.learner import Learner
from tests import small_processes as small

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Processes of the devices of a mesh (data, fsdp, tensor), a letter each, as libtpu 0.0.42 describes
# the slices and `sharding.make_mesh` places them: rows of devices, `tensor` of them side by side.
SLICES = {
    ("v5e:4x4", (1, 16, 1)): "aabbbbacddddccca",
    ("v5e:4x4", (1, 8, 2)): "aaaaccccbbbbdddd",
    ("v5e:4x4", (1, 4, 4)): "aabbaabbccddccdd",
    ("v6e:8x8", (1, 16, 4)):
        "aabbaabbeeffeeffiijjiijjmmnnmmnnccddccddgghhgghhkkllkkllooppoopp",
    ("v6e:8x8", (1, 64, 1)):
        "aaeeiimmaaeeiimmbbffjjnnbbffjjnnccggkkooccggkkooddhhllppddhhllpp",
    ("v5p:4x4x4", (1, 16, 4)):
        "aabbeeffiijjmmnnaabbeeffiijjmmnnccddgghhkkllooppccddgghhkklloopp",
    ("v5p:4x4x4", (1, 64, 1)):
        "aeimaeimcgkocgkoaeimaeimcgkocgkobfjnbfjndhlpdhlpbfjnbfjndhlpdhlp",
    ("v5p:4x4x8", (1, 16, 8)):
        "aeimquyCaeimquyCcgkoswAEcgkoswAEaeimquyCaeimquyCcgkoswAEcgkoswAE"
        "bfjnrvzDbfjnrvzDdhlptxBFdhlptxBFbfjnrvzDbfjnrvzDdhlptxBFdhlptxBF"}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEF"
each_slice = pytest.mark.parametrize("of", SLICES, ids=lambda of: f"{of[0]}-{of[1][2]}")


def processes(of):
  """[row shards, tensor] of a recorded slice."""
  return np.asarray([LETTERS.index(x) for x in SLICES[of]]).reshape(-1, of[1][2])


def groups(of):
  """The groups as each process of a slice sees them."""
  found = [row_groups.divided(processes(of), p) for p in range(processes(of).max() + 1)]
  assert None not in found
  return found


@each_slice
def test_every_place_is_of_one_group(of):
  seen = groups(of)
  total = 2 * len(processes(of))
  assert len({(g.shards, g.members) for g in seen}) == 1  # all processes see the same groups
  places = [seen[0].places(total, group) for group in range(seen[0].count)]
  np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(total))
  for process, mine in enumerate(seen):
    # a process holds exactly the shards that its devices have, and is in one group
    shards = np.flatnonzero((processes(of) == process).any(axis=1))
    np.testing.assert_array_equal(mine.places(total), np.sort([2 * shards, 2 * shards + 1], None))
    assert process in mine.members[mine.index]
    assert mine.is_lead == (process == mine.members[mine.index][0])
  assert sum(map(len, seen[0].members)) == len(seen)
  assert sum(g.is_lead for g in seen) == seen[0].count


def test_the_groups_of_the_slices_of_the_documentation():
  """Where `tensor` spans processes: how many read and verify, and how many share their rows."""
  sizes = {of: (groups(of)[0].count, len(groups(of)[0].members[0])) for of in SLICES}
  assert sizes["v5p:4x4x4", (1, 16, 4)] == sizes["v6e:8x8", (1, 16, 4)] == (8, 2)
  assert sizes["v5p:4x4x8", (1, 16, 8)] == (4, 8) and sizes["v5e:4x4", (1, 4, 4)] == (2, 2)
  assert sizes["v5p:4x4x4", (1, 64, 1)] == (16, 1)


@pytest.mark.parametrize("held", [
    [[0, 0], [0, 1], [1, 1]],  # two processes of three devices, fsdp 3 x tensor 2
    [[0], [0], [1]],  # one has more rows than the other
    [[0, 1], [1, 2], [2, 3], [3, 0]]])  # a ring
def test_processes_that_share_some_rows_are_no_groups(held):
  assert row_groups.divided(np.asarray(held), 0) is None


@pytest.mark.parametrize("held, members", [
    ([[0, 0], [1, 1]], ((0,), (1,))), ([[0, 1]], ((0, 1),)), ([[1, 0], [1, 0]], ((0, 1),)),
    ([[2, 3], [0, 1], [3, 2], [1, 0]], ((2, 3), (0, 1))), ([[0]], ((0,),))])
def test_processes_that_share_all_rows_or_none_are_groups(held, members):
  found = row_groups.divided(np.asarray(held), 0)
  assert found is not None and found.members == members


def devices(count, per_process):
  """CPU devices of several processes, as far as meshes look at them."""
  return [types.SimpleNamespace(id=at, process_index=at // per_process, platform="cpu",
                                device_kind="cpu") for at in range(count)]


def test_what_cannot_be_grouped_is_refused_with_the_meshes_that_can(monkeypatch):
  assert list(row_groups.dividing(devices(6, 3))) == [
      (6, 1, 1), (3, 2, 1), (2, 3, 1), (1, 6, 1), (2, 1, 3), (1, 2, 3), (1, 1, 6)]
  mesh = sharding.make_mesh(1, 3, 2, jax.devices()[:6])
  monkeypatch.setattr(sharding, "row_processes", lambda mesh: np.asarray([[0, 0], [0, 1], [1, 1]]))
  monkeypatch.setattr(row_groups, "dividing", lambda found: [(1, 6, 1), (1, 2, 3)])
  with pytest.raises(ValueError, match=r"'fsdp': 3, 'tensor': 2\}: some processes share a part .*"
                                       r"choices for \(data, fsdp, tensor\): \(1, 6, 1\), "):
    row_groups.of.__wrapped__(mesh)
  with pytest.raises(ValueError, match="6 rows do not divide over data x fsdp=4 devices"):
    row_groups.divided(np.asarray([[0], [1], [2], [3]]), 0).places(6)


def test_what_several_processes_cannot_do_is_refused_when_the_experiment_is_built(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for case in small.CASES:
    assert small.experiment(case, (1, 1, 2)).name == case
  rule = Branching(samples=4, beam=2, calls=2, scope="prompt")
  monkeypatch.setitem(small.CASES, "trees", (Agentic(turns=3, rule=rule), dict(samples=4)))
  with pytest.raises(NotImplementedError, match="2 processes with Agentic: .* choices: own, path"):
    small.experiment("trees", (1, 1, 2))


# ---- The orders of slices, on forced devices ---------------------------------------------------


def selected(sizes, held, total, updates):
  """Ids of the prompts of the second of `updates` updates, on a mesh whose devices lie as those of
  a slice: each process reads its prompts of the step, and gives them to its devices alone."""
  count = held.max() + 1
  devices_of = [iter(jax.devices()[p::count]) for p in range(count)]
  placed = np.asarray([next(devices_of[p]) for p in held.ravel()])
  mesh = jax.sharding.Mesh(placed.reshape(sizes), sharding.AXES)
  shards = {}
  for process in range(count):
    mine = row_groups.divided(held, process)
    places = mine.places(total).tolist()
    batch = next(prompts.iterator(small.Says(), 3, total, places=places))
    rows = np.repeat(np.asarray([example.id for example in batch], np.int32), small.SAMPLES)
    of_shard = dict(zip(mine.shards[mine.index],
                        np.split(rows, len(mine.shards[mine.index])), strict=True))
    for at, device in enumerate(placed):
      if held.ravel()[at] == process:
        shards[device] = jax.device_put(of_shard[at // held.shape[1]], device)
  rows = jax.make_array_from_single_device_arrays(
      (small.SAMPLES * total,), sharding.rows(mesh), [shards[device] for device in placed])
  base = small.experiment("plain", sizes)
  learner = Learner(dataclasses.replace(
      base, sampling=dataclasses.replace(base.sampling, prompts=total),
      training=dataclasses.replace(base.training, updates=updates)), small.Random().load()[0], mesh)
  batch = Batch(tokens=rows)
  return np.asarray(learner.select(batch, np.int32(1)).tokens).tolist()


def compare_slices():
  """Fails where a slice selects other prompts than one device does."""
  for of in SLICES:
    held = processes(of)
    if held.size <= jax.device_count():
      total = 4 * len(held)
      for updates in (2, 8):  # of whole devices' prompts, and of parts of them
        want = selected((1, 1, 1), np.zeros((1, 1), int), total, updates)
        assert selected(of[1], held, total, updates) == want, (of, updates)
        assert len(want) == small.SAMPLES * total // updates
        print(f"{of}: {updates} updates")


def test_slices_select_the_prompts_of_one_device():
  done = subprocess.run(
      [sys.executable, "-c", "from tests import row_groups_test; row_groups_test.compare_slices()"],
      cwd=ROOT, env=environment(64), capture_output=True, text=True, timeout=600, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("2 updates") == 7


# ---- Several processes -------------------------------------------------------------------------


def environment(devices):
  """Of a process with so many CPU devices, whose programs are compiled quickly."""
  return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS":
          f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
          "--xla_llvm_disable_expensive_passes=true"}


def job(folder, n, mesh, order, cases, timeout):
  """What n processes of one device compute: {case: [arrays of each process]}."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  several = {"ENTROLAB_COORDINATOR": f"localhost:{port}", "ENTROLAB_PROCESSES": str(n)}
  started = [subprocess.Popen(
      [sys.executable, "-m", "tests.small_processes", str(folder / "out"), mesh, order, *cases],
      cwd=ROOT, env={**environment(1), **(several if n > 1 else {}), "ENTROLAB_PROCESS": str(rank)},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(n)]
  try:
    said = [process.communicate(timeout=timeout)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0] * n, "\n".join(said)
  return {case: [dict(np.load(folder / f"out.{case}.{rank}.npz")) for rank in range(n)]
          for case in cases}


def same(ours, theirs):
  """Tokens, verdicts and whatever is counted are equal; what is summed is, to rounding."""
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    if name == "verified":
      continue
    if value.dtype.kind == "f":
      np.testing.assert_allclose(value, theirs[name], atol=2e-6, err_msg=name)
    else:
      np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_tensor_over_two_processes_is_one_process(tmp_path, monkeypatch):
  monkeypatch.setattr(chips, "of", small.known_chip)
  alone = small.given((1, 1, 1))
  statuses = {status for *_, status, _ in json.loads(str(alone["0.known"]))}
  assert statuses == {"right", "wrong"} and alone["verified"] == small.PROMPTS
  found = job(tmp_path, 2, "1,1,2", "-", ["given", "folders"], 300)
  for of_process in found["given"]:
    same(of_process, alone)
  # one of the two has verified, and the other has its verdicts
  assert [int(x["verified"]) for x in found["given"]] == [small.PROMPTS, 0]
  for of_process in found["folders"]:  # both stop, and name the one that sees another folder
    assert f"process 1 on host {socket.gethostname()} cannot see" in str(of_process["said"])
  assert not [path for path in tmp_path.rglob("*") if path.is_file() and "shared" in path.name]


@pytest.mark.slow
def test_a_dry_run_in_two_processes_ends_and_leaves_nothing(tmp_path):
  job(tmp_path, 2, "1,1,2", "-", ["dry_run"], 900)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      "out.dry_run.0.npz", "out.dry_run.1.npz"]


ALL = [case for case in small.CASES if case != "given"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """All cases in one process on one device."""
  found = job(tmp_path_factory.mktemp("alone"), 1, "1,1,1", "-", ALL, 1800)
  assert sum(int(found["replay"][0][f"{step}.count.replayed"]) for step in range(4)) > 0
  assert found["refills"][0]["1.metric.rollout/refills"] > 0
  return {case: arrays for case, [arrays] in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("n, mesh, order, cases, groups", [
    (2, "1,1,2", "-", ALL, 1),
    (2, "1,2,1", "1,0", ["refills", "replay", "tempered", "cure", "episodes"], 2),
    (2, "2,1,1", "-", ["refills", "ahead", "votes"], 2),
    (4, "1,2,2", "3,1,0,2", ["refills", "replay", "episodes"], 2),  # process 1 leads first rows
    (4, "2,2,1", "2,0,3,1", ["refills", "cure", "tempered"], 4),
    (4, "1,1,4", "-", ["refills"], 1)])
def test_processes_of_one_device_are_one_process(alone, tmp_path, n, mesh, order, cases, groups):
  for case, found in job(tmp_path, n, mesh, order, cases, 1800).items():
    for of_process in found:
      same(of_process, alone[case])
    verified = sorted(int(x["verified"]) for x in found)
    assert verified[:n - groups] == [0] * (n - groups) and 0 not in verified[n - groups:], case
    assert sum(verified) == alone[case]["verified"]
