"""Layers: core and methods need jax and numpy alone, verify no jax, and nothing looks upwards."""

import ast
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORE = ("typing", "objective", "vocab", "nucleus", "aggregate", "control", "ranks", "microbatch",
        "keys", "batch", "fused", "statistics")
METHODS = sorted(p.stem for p in (ROOT / "entrolab/methods").glob("*.py") if p.stem != "__init__")
VERIFY = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts)
                for p in (ROOT / "entrolab/verify").rglob("*.py") if p.stem != "__init__")
# a method may build on these; any other import of a method is of another paper
BASELINES = ("grpo", "ppo", "kl", "bonus", "rloo", "gae")
SAME_PAPER = {"methods.kl_cov": ("methods.clip_cov",)}
DEPTH = 11  # modules in the longest chain of imports
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


def module_names(package):
  """Every module of a package's folder by its name below the package: `rollout.plain`."""
  names = {}
  for path in package.rglob("*.py"):
    parts = path.relative_to(package).with_suffix("").parts
    names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return names


def import_graph(package):
  """{module: the modules of the package that it imports}, wherever in the file it does so.

  `from entrolab.rollout import plain` imports `rollout.plain` where that is a module, and the
  package `rollout` where `plain` is a name in it. An import that names no module is kept as it is.
  """
  modules, top = module_names(package), package.name
  graph = {}
  for name, path in modules.items():
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: a relative import, which this law does not read"
        members = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= {member if member.removeprefix(f"{top}.") in modules else node.module
                  for member in members}
    inner = {full.removeprefix(f"{top}.") for full in found if full.split(".")[0] == top}
    graph[name] = inner - {name, top}
  return graph


def law_of_imports(package, depth=DEPTH):
  """What breaks the law, a sentence each: circles, chains over `depth`, methods that import another
  paper's method, core that looks up, imports of modules that are not there."""
  graph, said = import_graph(package), []
  for name, imported in graph.items():
    said += [f"{name} imports {other}, which is no module" for other in imported - graph.keys()]
    if name in CORE:
      said += [f"core {name} imports {other}" for other in imported - set(CORE)]
    if name.startswith("methods."):
      allowed = {*CORE, *(f"methods.{b}" for b in BASELINES), *SAME_PAPER.get(name, ())}
      said += [f"{name} imports {other}: no baseline" for other in imported - allowed]
  longest: dict[str, list[str]] = {}

  def chain(name, above):
    if name in above:
      said.append(f"circle: {' > '.join([*above[above.index(name):], name])}")
      return []
    if name not in longest:
      below = [chain(other, [*above, name]) for other in sorted(graph.get(name, ()))]
      longest[name] = [name, *max(below, key=len, default=[])]
    return longest[name]

  deepest = max((chain(name, []) for name in graph), key=len)
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
     "methods.steer imports trainer_of_old, which is no module"),
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
    (copy / f"analysis/deep{at}.py").write_text(below)
  found = law_of_imports(copy)
  assert len(found) == 1 and f"depth {DEPTH + 1} > {DEPTH}: analysis.deep0 > " in found[0], found
