"""Eight forced CPU devices, strict promotion: set before anything touches jax."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                           + " --xla_force_host_platform_device_count=8")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

MAPPINGS = 20_000  # a compiled program holds about ten; Linux ends a process that asks for 65,531
seen = 0
# LLVM without optimisation: it took more than half of the processor time of a test that trains
QUICK = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
  """Fast tests are about what programs compute, not about how well they are compiled; slow ones,
  which run programs for minutes and compare them with stored digests, are compiled as users' are.
  """
  if config.option.markexpr == "not slow":
    os.environ["XLA_FLAGS"] += QUICK  # read when the first program is compiled


@pytest.fixture(autouse=True)
def few_compiled_programs():
  """Drops the programs of earlier tests before their mappings run out."""
  global seen
  yield
  seen += 1
  maps = pathlib.Path("/proc/self/maps")
  if seen % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
    jax.clear_caches()


@pytest.fixture(scope="module")
def libraries_promote():
  """Standard promotion of types and ranks, for a file that trains: optax multiplies integers with
  floats. Ours is tested under strict promotion elsewhere."""
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """A folder of compiled programs, of all workers: what one run has compiled, others load."""
  own = tmp_path_factory.getbasetemp()
  folder = str((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled")
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {name: jax.config.values[name] for name in names}
  for name, value in zip(names, (folder, 0.0), strict=True):
    jax.config.update(name, value)
  yield folder
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # else later tests go on writing into it
