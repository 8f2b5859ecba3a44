"""Every golden file of the repository, value by value, in float64."""

import contextlib
import pathlib

import pytest

from scripts import methods_table
from tests import adapters

FILES = sorted((pathlib.Path(__file__).parent / "golden").glob("*.npz"))
assert FILES, "tests/golden holds no file"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden(path):
  shared, called = adapters.slug_of(path) in adapters.SHARED, set()
  with adapters.methods_called(called) if shared else contextlib.nullcontext():
    case, worst = adapters.check(path)
  assert worst.error <= worst.tolerance
  assert len(case.rows) >= 1
  if shared:  # README counts this file for every method that it compares, and for no other
    claimed = {method for method in methods_table.METHODS
               if path in methods_table.golden_files(method)}
    assert claimed and claimed <= called, f"README counts it for {claimed - called}, in vain"


def test_golden_files_of_a_method_are_those_of_its_name():
  names = lambda method: [path.stem for path in methods_table.golden_files(method)]
  assert names("siren") == ["siren_a", "siren_b", "siren_c"]
  assert names("kl") == ["base_objectives_misc_a", "base_objectives_pg_a", "base_objectives_pg_b",
                         "base_objectives_trl_a"]  # and none of kl_cov
  assert names("lite_ppo") == ["base_objectives_trl_a"]
  assert names("qae") == []
