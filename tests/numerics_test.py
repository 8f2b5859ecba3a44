"""float32 is float32 on every device, and gradients are summed over devices in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import aggregate, presets, sharding
from entrolab.experiment import Mesh
from entrolab.methods import grpo, ppo
from entrolab.models import transformer
from entrolab.models.parameters import Config
from entrolab.objective import Objective, term
from entrolab.rollout import decode
from entrolab.trainer.learner import Learner
from entrolab.typing import exact
from scripts import aot_compile

pytestmark = pytest.mark.usefixtures("libraries_promote")
SIZE = dict(vocab_size=120, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=96,
            qkv_bias=True, qk_norm=True, tied=False)


def step_of(dtype, data=1, fsdp=1):
  """The lowered train step of a small model with biases, norms and a head of its own."""
  objective = Objective(reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=8),
                        surrogate=term(ppo.clipped_ratio), aggregate=term(aggregate.token_mean))
  experiment = presets.get("tiny").experiment(
      "numerics", objective, training=dict(dtype=dtype, micro=2), mesh=Mesh(data, fsdp))
  mesh = sharding.make_mesh(data, fsdp, 1, jax.devices()[:data * fsdp])
  learner = Learner(experiment, Config(**SIZE), mesh)
  target = aot_compile.Target(experiment, "numerics", Config(**SIZE), "v5e:2x4", [])
  return learner.step.lower(*aot_compile.step_arguments(target, learner))


def sampler_of(dtype):
  """The lowered sampler of the same model."""
  config = Config(**SIZE, dtype=dtype)
  params = jax.eval_shape(lambda key: transformer.serving(config, transformer.init(config, key)),
                          jax.random.key(0))
  prompt = jax.ShapeDtypeStruct((4, 3), jnp.int32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
  run = lambda params, prompt, keys: decode.sample(
      config, params, prompt, prompt > 0, keys, decode.Decoding.of(), samples=2, max_tokens=4)
  return jax.jit(run).lower(params, prompt, keys)


def products(lowered):
  """(types of the operands, whether HIGHEST is requested) of every matmul of a program."""
  lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
  return [(re.findall(r"tensor<(?:\d+x)*(\w+)>", line.partition(" : ")[2])[:2],
           "HIGHEST, HIGHEST" in line) for line in lines]


@pytest.mark.parametrize("program", [step_of, sampler_of])
def test_float32_is_multiplied_in_float32(program):
  """By default a TPU multiplies float32 in one pass of bfloat16, and a GPU in TF32."""
  found = products(program("float32"))
  assert len(found) >= 8
  assert all(kinds == ["f32", "f32"] and highest for kinds, highest in found)


@pytest.mark.parametrize("program", [step_of, sampler_of])
def test_bfloat16_is_multiplied_as_it_is(program):
  found = products(program("bfloat16"))
  assert sum(kinds == ["bf16", "bf16"] for kinds, _ in found) >= 8
  assert not any(highest for kinds, highest in found if "bf16" in kinds)


def test_the_precision_is_that_of_the_type():
  highest = jax.lax.Precision.HIGHEST
  assert [exact(jnp.zeros(1, kind)) for kind in (jnp.float32, jnp.bfloat16, jnp.float16)] == [
      highest, None, None]


def summed_over_devices(lowered, folder):
  """The types in which a program adds up over devices, before a backend widens them."""
  lowered.compile(compiler_options=dict(
      xla_dump_to=str(folder), xla_dump_hlo_as_text=True, xla_dump_hlo_pass_re="spmd-partitioning"))
  text, = (path.read_text() for path in folder.glob("*.after_spmd-partitioning.*"))
  results = re.findall(r"= (.*?) (?:all-reduce|reduce-scatter)\(", text)
  return [kind for result in results for kind in re.findall(r"(\w+)\[", result)]


def test_gradients_of_a_bfloat16_model_are_summed_in_float32(tmp_path):
  found = summed_over_devices(step_of("bfloat16", data=2, fsdp=4), tmp_path)
  # a sum for every parameter at least, and none in a narrow type
  assert len(found) >= 12 and "bf16" not in found


def test_the_check_sees_a_sum_in_bfloat16(tmp_path):
  """What differentiating a cast gives."""
  mesh = sharding.make_mesh(2, 4, 1)
  on_rows, whole = sharding.rows(mesh), sharding.whole(mesh)
  x = jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=on_rows)
  w = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=whole)
  loss = lambda w, x: jnp.square(jnp.einsum("nd,de->ne", x, w.astype(x.dtype))).sum()
  lowered = jax.jit(jax.grad(loss), out_shardings=whole).lower(w, x)
  assert "bf16" in summed_over_devices(lowered, tmp_path)


@pytest.mark.slow
def test_gradients_of_a_bfloat16_model_are_not_rounded():
  """Those of matrices, biases and the embedding have bits that bfloat16 has not."""
  config = Config(**SIZE, dtype="bfloat16")
  params = transformer.init(config, jax.random.key(0))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 6)), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(6)[None], (2, 6))

  def loss(params):
    hidden = transformer.hidden_states(config, params, tokens, positions, jnp.ones_like(tokens))
    return jnp.square(hidden.astype(jnp.float32)).sum() + hidden[0, 0, 0].astype(jnp.float32)

  grads = jax.jit(jax.grad(loss))(params)
  for name, x in {"embed": grads["embed"], **grads["layers"]}.items():
    assert (x != x.astype(jnp.bfloat16).astype(jnp.float32)).any(), name
