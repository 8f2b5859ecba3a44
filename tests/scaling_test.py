"""How cost grows: the fit of slopes, and collectives beside theory."""

import math
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "scripts"))

import bench_scaling  # noqa: E402

SIZES = [256, 512, 1024, 4096]


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_slope_of_a_power_is_the_power(power):
  assert bench_scaling.slope(SIZES, [3.0 * n**power for n in SIZES]) == pytest.approx(power)


def test_a_slope_minimises_squares_of_logarithms():
  values = [1.0, 3.0, 3.0, 20.0]
  cost = lambda k: min(sum((math.log(v) - k * math.log(n) - c / 100)**2
                           for n, v in zip(SIZES, values, strict=True)) for c in range(-1500, 500))
  best = bench_scaling.slope(SIZES, values)
  assert cost(best) < min(cost(best - 0.05), cost(best + 0.05))


def test_slopes_need_sizes_and_positive_values():
  assert math.isnan(bench_scaling.slope(SIZES, [1.0, 2.0, 0.0, 3.0]))
  for sizes, values in (([8, 8], [1.0, 2.0]), ([0, 8], [1.0, 2.0]), ([8], [1.0]), ([4, 8], [1.0])):
    with pytest.raises(ValueError, match="two different sizes"):
      bench_scaling.slope(sizes, values)


def program(axis, devices, *found):
  return {"program": "step", "axis": axis, "devices": devices, "layers": 3, "weights": 8e6,
          "states": 1e6, "found": [
              dict(zip(("kind", "group", "times", "bytes", "wire"), one, strict=True))
              for one in found]}


@pytest.mark.parametrize("axis, devices, kinds", [
    ("data", 1, {"all-reduce": (1, 0.0)}), ("data", 4, {"all-reduce": (1, 12e6)}),
    ("fsdp", 2, {"all-gather": (2, 8e6), "reduce-scatter": (1, 4e6)}),
    ("tensor", 2, {"all-reduce": (14, 14e6)})])
def test_theory_of_an_update(axis, devices, kinds):
  assert bench_scaling.theory(program(axis, devices)) == kinds


def test_collectives_are_summed_by_kind_beside_theory():
  four, one = (0, 1, 2, 3), (0,)
  own = program("data", 4, ("all-reduce", four, 1, 8e6, 12e6), ("all-reduce", one, 5, 1e6, 0.0),
                ("all-reduce", four, 3, 1e6, 4.5e6), ("all-gather", four, 2, 1e6, 6e6))
  assert bench_scaling.by_kind(own) == [
      ["step", "data 4", "all-reduce", 4, 11.0, 16.5, 1, 12.0, None],
      ["step", "data 4", "all-gather", 2, 2.0, 6.0, 0, 0.0, None],
      ["step", "data 4", "all", 6, 13.0, 22.5, 1, 12.0, 22.5 / 12.0]]
