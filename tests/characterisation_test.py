"""What five recipes compute in three steps, to the bit: a change of structure must not move it.

`tests/golden/characterisation.json` holds sha256 of the metrics (all but times), the samples and
the final parameters of every case, by processor and versions: bits depend on both. Elsewhere the
test is skipped with a reason. A metric that is renamed on purpose is compared under the name that
it had (`RENAMED`). After a change that is meant to move a number:

  python -m tests.characterisation_test --write

adds or replaces the record of this machine.
"""

import hashlib
import json
import os
import pathlib
import platform
import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from entrolab import config
from entrolab.trainer import loop
from entrolab.trainer.log import WALL
from entrolab.trainer.names import FORMER_NAMES

pytestmark = pytest.mark.usefixtures("libraries_promote")

RECORD = pathlib.Path(__file__).parent / "golden/characterisation.json"
SMALL = ("sampling.prompts=8", "evaluation.problems=8", "evaluation.ks=(1, 2)",
         "evaluation.samples=8", "training.steps=3", "training.updates=2", "saving.every=0")
RECIPES = {
    "toy": ("experiments/toy.py", ()),
    "siren": ("experiments/siren.py", ("training.micro=2",)),
    "cure": ("experiments/cure.py:until=2", ()),
    "spear": ("experiments/spear.py:size=8,prompts=4,imitation=2", ()),
    "epo": ("experiments/epo.py:turns=8", ("model.steps=10",)),
}
# metrics that were renamed on purpose, new name -> the name in the record
RENAMED = FORMER_NAMES
MESHES = {"one": ("mesh.data=1",), "mesh": ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")}
CASES = [f"{recipe}-{mesh}" for recipe in RECIPES for mesh in MESHES]


def machine() -> str:
  """Processor, cores and versions, on which the last bits of a sum depend."""
  flags = ""
  if pathlib.Path("/proc/cpuinfo").is_file():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
  return (f"{platform.machine()} {digest}, {os.cpu_count()} cores, jax {jax.__version__}, numpy "
          f"{np.__version__}")


def sha(*parts: bytes) -> str:
  """Sixteen hexadecimal digits of all parts together."""
  return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def measured(case: str, folder: pathlib.Path) -> dict[str, str]:
  """sha256 of what a case leaves in `folder`."""
  recipe, mesh = case.split("-")
  path, own = RECIPES[recipe]
  experiment = config.load(path, (*SMALL, *own, *MESHES[mesh]))
  loop.run(experiment, folder)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert len(rows) == 5  # before, three steps, after
  metrics = [json.dumps(sorted((RENAMED.get(name, name), value) for name, value in row.items()
                               if not name.startswith(WALL))).encode() for row in rows]
  samples = [path.read_bytes() for path in sorted((folder / "samples").iterdir())]
  assert samples
  with ocp.CheckpointManager((folder / "checkpoints").resolve()) as manager:
    got = manager.restore(3, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
  params = {name: np.asarray(leaf) for name, leaf in got.items() if name.startswith("params")}
  assert len(params) > 5
  return {"metrics": sha(*metrics), "samples": sha(*samples),
          "parameters": sha(*(params[name].tobytes() for name in sorted(params)))}


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", CASES)
def test_nothing_changes_in_what_is_computed(case, tmp_path):
  known = json.loads(RECORD.read_text())
  if machine() not in known:
    pytest.skip(f"no record for {machine()}; have: {'; '.join(known)}")
  assert measured(case, tmp_path) == known[machine()][case]


def main() -> None:
  """Prints the digests of this machine; with --write, records them."""
  jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
  found = {}
  for case in [name for name in CASES if name in sys.argv] or CASES:
    with tempfile.TemporaryDirectory() as folder:
      found[case] = measured(case, pathlib.Path(folder))
    print(case, found[case], flush=True)
  if "--write" in sys.argv:
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    known[machine()] = {**known.get(machine(), {}), **found}
    RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
  main()
