"""Layers: core and methods need jax and numpy alone, verify no jax, and nothing looks upwards."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORE = ("typing", "objective", "vocab", "nucleus", "aggregate", "control", "ranks", "microbatch")
METHODS = sorted(p.stem for p in (ROOT / "entrolab/methods").glob("*.py") if p.stem != "__init__")
VERIFY = sorted(p.stem for p in (ROOT / "entrolab/verify").glob("*.py") if p.stem != "__init__")
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
  done = imports([f"entrolab.verify.{m}" for m in VERIFY], {"entrolab"})
  assert done.returncode == 0, done.stderr


def test_the_block_blocks():
  assert imports(["flax"], {"entrolab", "jax"}).returncode != 0


def inner_imports(path):
  """Names below entrolab that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "entrolab":
      rest = (node.module or "").split(".")[1:]
      yield from ([".".join(rest)] if rest else [alias.name for alias in node.names])


@pytest.mark.parametrize("name", CORE)
def test_core_does_not_know_that_a_trainer_exists(name):
  assert set(inner_imports(ROOT / f"entrolab/{name}.py")) <= set(CORE)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_imports_core_and_baselines(name):
  baselines = {f"methods.{m}" for m in ("grpo", "ppo", "kl", "bonus", "rloo", "gae")}
  same_paper = {"kl_cov": {"methods.clip_cov"}}
  allowed = set(CORE) | baselines | {"methods"} | same_paper.get(name, set())
  assert set(inner_imports(ROOT / f"entrolab/methods/{name}.py")) <= allowed


def test_imports_have_no_cycle_and_little_depth():
  files = {".".join(p.relative_to(ROOT / "entrolab").with_suffix("").parts): p
           for p in (ROOT / "entrolab").rglob("*.py")}
  edges = {name: {i for i in inner_imports(path) if i in files} for name, path in files.items()}
  depth: dict[str, int] = {}

  def walk(name, above):
    assert name not in above, f"cycle: {' -> '.join([*above, name])}"
    if name not in depth:
      depth[name] = 1 + max((walk(n, (*above, name)) for n in edges[name]), default=0)
    return depth[name]

  # main, train, learner, microbatch, objective, vocab, nucleus, typing
  assert max(walk(name, ()) for name in files) <= 9
