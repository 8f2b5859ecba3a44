"""Layers: core and methods need jax and numpy alone, verify no jax, and nothing looks upwards."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from scripts import house_counts, house_imports

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORE = ("typing", "objective", "vocab", "nucleus", "aggregate", "control", "ranks", "microbatch",
        "keys", "batch", "fused", "statistics", "sharding", "arguments", "row_groups",
        "tangents", "terms")
METHODS = sorted(p.stem for p in (ROOT / "entrolab/methods").glob("*.py") if p.stem != "__init__")
VERIFY = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts)
                for p in (ROOT / "entrolab/verify").rglob("*.py") if p.stem != "__init__")
# a method may build on these; any other import of a method is of another paper
BASELINES = ("grpo", "ppo", "kl", "bonus", "rloo", "gae")
SAME_PAPER = {"methods.kl_cov": ("methods.clip_cov",)}
DEPTH = 10  # modules in the longest chain of imports
BLOCK = """
import importlib.abc, sys
allowed = {allowed!r}
class Block(importlib.abc.MetaPathFinder):
  def forbids(self, name):
    top = name.split(".")[0]
    return not (top in sys.stdlib_module_names or top in allowed or top.startswith("_"))
  def find_spec(self, name, path=None, target=None):
    if self.forbids(name):
      raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
for name in list(sys.modules):  # what jax itself has imported is not for us
  if Block().forbids(name):
    del sys.modules[name]
sys.meta_path.insert(0, Block())
"""


def imports(modules, allowed):
  first = "import jax, jax.numpy\n" if "jax" in allowed else ""
  code = first + BLOCK.format(allowed=allowed) + "\n".join(f"import {m}" for m in modules)
  return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                        check=False)


def test_core_and_methods_need_jax_and_numpy_alone():
  modules = [f"entrolab.{m}" for m in CORE] + [f"entrolab.methods.{m}" for m in METHODS]
  made_of = {"jaxlib", "ml_dtypes", "opt_einsum", "scipy"}  # what jax itself needs
  done = imports(modules, {"entrolab", "jax", "numpy"} | made_of)
  assert done.returncode == 0, done.stderr


def test_verify_needs_no_jax():
  done = imports(VERIFY, {"entrolab"})
  assert done.returncode == 0, done.stderr


def test_the_block_blocks():
  assert imports(["flax"], {"entrolab", "jax"}).returncode != 0


def full_name(package, name):
  """`entrolab.rollout` of `rollout`, as import graphs shorten it."""
  return name if name == package.name else f"{package.name}.{name}"


def law_of_imports(package, depth=DEPTH):
  """What breaks the law, a sentence each: circles, chains over `depth`, methods that import another
  paper's method, core that looks up, imports of modules that are not there."""
  graph = house_counts.read_graph(sorted(package.rglob("*.py")), package, inside_functions=True)
  said = [f"circle: {' > '.join(circle)}" for circle in house_imports.circles(graph)]
  # packages that hold modules and nothing else: what is imported from one, and is no module of it,
  # is not there
  bare = {package.name, *(name for name in graph
                          if not house_imports.has_code(full_name(package, name), package))}
  for name, imported in graph.items():
    said += [f"{name} takes from {other} what is not there" for other in sorted(bare & {*imported})]
    if name in CORE:
      said += [f"core {name} imports {other}" for other in imported if other not in CORE]
    if name.startswith("methods."):
      allowed = {*CORE, *(f"methods.{b}" for b in BASELINES), *SAME_PAPER.get(name, ())}
      said += [f"{name} imports {other}: no baseline" for other in imported if other not in allowed]
  deepest = house_imports.deepest_chain(graph)
  if len(deepest) > depth:
    said.append(f"depth {len(deepest)} > {depth}: {' > '.join(deepest)}")
  return said


def test_the_package_obeys_the_law_of_imports():
  assert law_of_imports(ROOT / "entrolab") == []


@pytest.mark.parametrize("path, line, said", [
    ("rollout/decode.py", "from entrolab.rollout import plain", "circle: "),
    ("ranks.py", "def late():\n  from entrolab import microbatch", "circle: "),
    ("methods/steer.py", "from entrolab.methods import siren",
     "methods.steer imports methods.siren: no baseline"),
    ("methods/steer.py", "import entrolab.methods.siren",
     "methods.steer imports methods.siren: no baseline"),
    ("vocab.py", "from entrolab.trainer.loop import run", "core vocab imports trainer.loop"),
    ("methods/steer.py", "import entrolab.trainer_of_old",
     "methods.steer takes from entrolab what is not there"),
    ("trainer/loop.py", "def late():\n  from entrolab.rollout import of_old",
     "trainer.loop takes from rollout what is not there"),
])
def test_the_law_sees_what_breaks_it(tmp_path, path, line, said):
  copy = tmp_path / "entrolab"
  shutil.copytree(ROOT / "entrolab", copy, ignore=shutil.ignore_patterns("*_assets", "__pycache__"))
  with open(copy / path, "a") as file:
    file.write(f"\n\n{line}\n")
  found = law_of_imports(copy)
  assert any(said in sentence for sentence in found), found


def test_the_law_sees_a_chain_that_is_too_deep(tmp_path):
  copy = tmp_path / "entrolab"
  shutil.copytree(ROOT / "entrolab", copy, ignore=shutil.ignore_patterns("*_assets", "__pycache__"))
  for at in range(DEPTH + 1):  # each imports the next: one more than there may be
    below = f"from entrolab.analysis import deep{at + 1}\n" if at < DEPTH else ""
    (copy / f"analysis/deep{at}.py").write_text(below or "END = True\n")
  found = law_of_imports(copy)
  assert len(found) == 1 and f"depth {DEPTH + 1} > {DEPTH}: analysis.deep0 > " in found[0], found
