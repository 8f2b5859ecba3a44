"""scripts/house.py: a file counted by hand, and planted faults that it must name."""

import ast
import json

import pytest

from scripts import house, house_counts, house_figures, house_imports

BY_HAND = '''\
"""What it is.
And more of it."""

# A comment alone.
import dataclasses
from typing import Any

SEPARATOR = "# not a comment"
TEXT = """in a string

# not a comment either"""

@dataclasses.dataclass
class Pair:
  """A record."""
  left: Any

  right: "int"  # behind code

def public(x: int, *, y: float = 1.0):
  """Documented.

  At some length."""
  a, b = x, y
  c, d = divmod(a, 2)
  return lambda z: a + b

def _private(x):
  return x
'''
COUNTED = house_counts.Counts(
    lines=29,
    code=15,            # imports 2, strings 3, Pair 4, public 4, _private 2
    comments=2,
    only_comment=1,
    docstrings=2 + 1 + 3,
    nodes=10 + 11 + 26 + 3,  # above Pair, Pair, public, _private
    assignments=4,
    tuple_assignments=1)


@pytest.fixture
def package(tmp_path):
  """Writes a package of these files and returns its folder."""
  def write(files):
    root = tmp_path / "planted"
    for name, text in {"__init__.py": "", **files}.items():
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return root
  return write


@pytest.fixture
def measured(capsys):
  """Runs the script on a folder and returns its JSON line."""
  def measure(root, *options):
    house.main([str(root), "--json", *options])
    return json.loads(capsys.readouterr().out)
  return measure


@pytest.fixture
def broken(capsys):
  """Runs the script with --check and returns the lines about broken bounds, [] for exit code 0."""
  def check(root):
    try:
      house.main([str(root), "--check"])
    except SystemExit as stop:
      assert stop.code == 1
    return capsys.readouterr().err.splitlines()
  return check


def test_a_file_counted_by_hand(package, measured):
  root = package({"by_hand.py": BY_HAND})
  module = house_counts.read_package(root, ["__init__.py"]).modules[0]
  assert module.counts == COUNTED
  public, private = module.functions
  # A docstring counts as one line, and nodes are those of the function with its `def`.
  assert public == house_counts.Function("by_hand.public", 20, 5, 26, True, True)
  assert private == house_counts.Function("by_hand._private", 28, 2, 3, False, False)
  assert public.public and not private.public

  found = measured(root)
  assert found["comments"]["whole"] == 13.33  # 2 of 15
  assert found["docstrings"]["whole"] == 27.27  # 6 of 22
  assert found["nodes_per_line"]["whole"] == 3.33  # 50 of 15
  assert found["tuple_assignments"] == 25.0
  assert found["public_functions"] == {"documented": 100.0, "typed": 100.0}
  assert found["any_fields"] == {"by_hand.Pair": 1}
  assert found["longest_function"] == {"by_hand.public": 5}


def test_every_node_is_what_walk_yields(package, measured):
  root = package({"by_hand.py": BY_HAND})
  every = len(list(ast.walk(ast.parse(BY_HAND))))
  assert measured(root, "--every_node")["largest_file"] == {"by_hand": every}


@pytest.mark.parametrize(("statement", "expected"), [
    ("import planted.a.b", ["planted.a.b"]),
    ("import planted.a.b as b", ["planted.a.b"]),
    ("from planted.a import b", ["planted.a.b"]),
    ("from planted.a import b as c, NAME", ["planted.a", "planted.a.b"]),
    ("from planted.a.b import NAME", ["planted.a.b"]),
    ("from planted.a.b import *", ["planted.a.b"]),
    ("from . import b", ["planted.a.b"]),
    ("from .b import NAME", ["planted.a.b"]),
    ("from .. import coded", ["planted.coded"]),
    ("from ..coded import inner", ["planted.coded", "planted.coded.inner"]),
    ("import planted.coded.inner", ["planted.coded", "planted.coded.inner"]),
    ("import jax.numpy, planted_too", []),
    ("from jax import numpy", []),
])
def test_every_form_of_import(package, statement, expected):
  root = package({"a/__init__.py": '"""No code, only a docstring."""', "a/b.py": "",
                  "coded/__init__.py": "NAME = 1", "coded/inner.py": "",
                  "a/top.py": statement, "a/late.py": f"def function():\n  {statement}"})
  if not statement.endswith("*"):  # which Python forbids within functions
    assert house.imports(root / "a/late.py", root) == expected
    assert house.imports(root / "a/late.py", root, inside_functions=False) == []
  assert house.imports(root / "a/top.py", root) == expected


def test_an_init_imports_from_its_folder(package):
  root = package({"a/__init__.py": "from . import b\nfrom .. import c", "a/b.py": "", "c.py": ""})
  assert house.imports(root / "a/__init__.py", root) == ["planted.a.b", "planted.c"]
  # The packages around a file are being imported already: no circle of a and a.b.
  (root / "a/b.py").write_text("from planted.a import d")
  (root / "a/d.py").write_text("")
  assert house.imports(root / "a/b.py", root) == ["planted.a.d"]
  (root / "a/b.py").write_text("from planted.a import NAME")
  assert house.imports(root / "a/b.py", root) == ["planted.a"]


def test_dots_that_lead_out_are_an_error(package):
  root = package({"a.py": "from ..b import c"})
  with pytest.raises(ValueError, match=r"a\.py:1: \.\. leads out of planted"):
    house.imports(root / "a.py", root)


def test_a_circle_is_named(package, measured, broken):
  files = {"a.py": "from planted import b", "b.py": "import planted.c",
           "c.py": "def late():\n  from planted import a", "d.py": "from planted import a"}
  root = package(files)
  assert measured(root)["circles"] == ["a > b > c > a"]
  assert broken(root) == ["import circle: a > b > c > a"]
  # Members of the circle count as one module; without imports inside functions there is none.
  assert measured(root)["deepest_chain"] == ["d", "a = b = c"]
  assert measured(root)["import_depth"] == {"all": 2, "at_start": 4}
  (root / "c.py").write_text("")
  assert measured(root)["circles"] == [] and broken(root) == []


def test_a_deep_chain_is_named(package, measured, broken):
  last = house_figures.DEPTH  # modules m00 to m10, each importing the next
  files = {f"m{i:02}.py": f"from planted import m{i + 1:02}" for i in range(last)}
  root = package({**files, f"m{last:02}.py": ""})
  chain = [f"m{i:02}" for i in range(last + 1)]
  assert measured(root)["deepest_chain"] == chain
  assert broken(root) == [f"import depth 11; at most 10: {' > '.join(chain)}"]
  (root / "m05.py").write_text("")
  assert broken(root) == []


def test_private_names_of_other_modules_are_named(package, measured):
  root = package({
      "owner.py": "_hidden = 1\n_hidden + __name__.count('_')",
      "inner/__init__.py": "from planted.inner import _secret", "inner/_secret.py": "",
      "user.py": "from planted import owner\nfrom planted.owner import _hidden\nowner._hidden\n"
                 "owner.__name__\nimport planted.owner as o\n\ndef late(other):\n"
                 "  other._field + o._hidden\n  from planted.inner import _secret"})
  assert measured(root)["private_imports"] == [
      "user:2 owner._hidden", "user:3 owner._hidden", "user:8 owner._hidden",
      "user:9 inner._secret"]


def test_long_files_and_functions_are_named(package, broken):
  bound = house_figures.FUNCTION_NODES
  statement = "  x\n"  # two nodes, and `def` is one
  function = "def function():\n" + statement * (bound // 2)
  root = package({"folder/long.py": "\n" * house_figures.FILE_LINES + function})
  assert broken(root) == [
      "planted/folder/long.py: 776 lines; at most 600",
      "planted/folder/long.py:601: folder.long.function has 351 AST nodes; at most 350"]
  (root / "folder/long.py").write_text("x\n" * (house_figures.FILE_LINES // 2) + "x; x\n" * 300)
  assert broken(root) == []
  (root / "folder/long.py").write_text("x; x; x; x; x\n" * 201)
  assert broken(root) == ["planted/folder/long.py: 2,010 AST nodes; at most 2,000"]


def test_the_table_and_what_is_skipped(package, capsys):
  root = package({"train.py": "x = 1  # why", "methods/a.py": "x = 1\ny = 2\nz = 3",
                  "train_test.py": "no Python"})
  house.main([str(root), "--skip", "*_test.py", "--comments_of", "train"])
  rows = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
  assert rows["files"] == "3" and rows["median file, lines"] == "1 (methods 3)"
  assert rows["comments per 100 code lines"] == "25.0 (core -, methods 0.0)"
  assert rows["comments per 100 code lines, by module"] == "train 100.0"


@pytest.mark.parametrize(("files", "message"), [
    ({"a.py": "no Python"}, "a.py"), ({}, "no Python files")])
def test_mistakes_are_no_broken_bound(package, capsys, files, message):
  root = package(files)
  with pytest.raises(SystemExit) as stop:
    house.main([str(root), "--check", *([] if files else ["--skip", "*.py"])])
  assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_script_obeys_its_own_bounds():
  others = ["[!h]*", "h[!o]*"]  # than house*.py
  package = house_counts.read_package(house.ROOT / "scripts", others)
  names = [module.name for module in package.modules]
  assert names == ["house", "house_counts", "house_figures", "house_imports"]
  assert list(house_figures.breaches(package)) == []
  assert not any(module.private_uses for module in package.modules)
  assert house_imports.circles(package.graph) == []
