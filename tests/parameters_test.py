"""The table of parameters agrees with init, shardings, int8 serving and stored checkpoints."""

import math

import jax
import numpy as np
import pytest

from entrolab import sharding
from entrolab.models import gguf, huggingface, parameters, transformer

FAMILIES = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
LAYER = {  # tensors of a layer of every family, by the names in files of Hugging Face
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"}
FURTHER = {
    "llama": set(),
    "qwen2": {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"},
    "qwen3": {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}}


@pytest.fixture(params=[(family, tied) for family in FAMILIES for tied in (True, False)],
                ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def model(request):
  """(family, Config with no two sizes alike)."""
  family, tied = request.param
  return family, transformer.Config(vocab_size=40, width=22, layers=3, heads=10, kv_heads=2,
                                    head_dim=6, mlp_width=26, tied=tied, **FAMILIES[family])


def abstract(fn, *args):
  """{path: (shape, dtype)} of the tree that a function gives."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(fn, *args))
  return {jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype)) for path, leaf in leaves}


def ranks(specs):
  """{path: entries} of a tree of PartitionSpecs."""
  leaves = jax.tree_util.tree_leaves_with_path(
      specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
  return {jax.tree_util.keystr(path): len(spec) for path, spec in leaves}


def test_the_table_is_the_tree_that_init_makes(model):
  _, config = model
  made = abstract(lambda: transformer.init(config, jax.random.key(0)))
  assert made == abstract(lambda tree: tree, parameters.shapes(config))
  assert parameters.count(config) == sum(math.prod(shape) for shape, _ in made.values())


def test_every_axis_has_a_size_and_a_rule(model):
  _, config = model
  names = [row.name for row in parameters.PARAMETERS]
  assert len(set(names)) == len(names)
  for row in parameters.PARAMETERS:
    assert set(row.axes) <= parameters.sizes(config).keys() & sharding.RULES.keys()
    assert set(row.summed) <= set(row.axes)
    parts = [parameters.fused(config)[axis] for axis in row.axes
             if axis in parameters.fused(config)]
    assert [len(row.tensors)] == ([len(part) for part in parts] or [1])


@pytest.mark.parametrize("int8", [False, True])
def test_shardings_are_those_of_what_is_served(model, int8):
  _, config = model
  served = abstract(lambda: transformer.serving(
      config, transformer.init(config, jax.random.key(0)), int8=int8))
  assert ranks(parameters.specs(config, int8)) == {
      path: len(shape) for path, (shape, _) in served.items()}
  kinds = {path for path, (_, dtype) in served.items() if dtype == "int8"}
  scales = {path for path in served if path.endswith("_scale']")}
  assert len(kinds) == len(scales) == int8 * (5 + (not config.tied))


def test_checkpoints_have_the_names_of_transformers(model):
  family, config = model
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameters.shapes(config))
  found = [(name, shape) for name, shape, _ in huggingface.tensors(config, params)]
  outer = {"model.embed_tokens.weight", "model.norm.weight"}
  outer |= set() if config.tied else {"lm_head.weight"}
  layers = {f"model.layers.{i}.{name}" for i in range(config.layers)
            for name in LAYER | FURTHER[family]}
  names = [name for name, _ in found]
  assert len(names) == len(set(names)) and set(names) == outer | layers
  # each entry of each parameter once
  assert sum(math.prod(shape) for _, shape in found) == parameters.count(config)


def test_each_part_of_a_fused_parameter_goes_where_it_came_from(model):
  _, config = model
  leaves, tree = jax.tree.flatten(parameters.shapes(config))
  starts = np.cumsum([0] + [math.prod(leaf.shape) for leaf in leaves])
  numbered = tree.unflatten([  # no two entries of the whole tree alike
      np.arange(start, start + math.prod(leaf.shape), dtype=np.float32).reshape(leaf.shape)
      for start, leaf in zip(starts, leaves, strict=False)])
  stored = {name: huggingface.Stored(name, shape, make)
            for name, shape, make in huggingface.tensors(config, numbered)}
  again = huggingface.assemble(config, stored, "memory")
  assert jax.tree.all(jax.tree.map(np.array_equal, numbered, again))
  # query head k R + r is entry r of key-value head k; rows are outputs
  at, query = stored["model.layers.1.self_attn.q_proj.weight"].read(), numbered["layers"]["qkv"][1]
  assert at.shape == (60, 22)
  assert np.array_equal(at[6 * 7:6 * 8], query[:, 1, 2].T)  # head 7 = 1 * 5 + 2
  value = stored["model.layers.2.self_attn.v_proj.weight"].read()
  assert np.array_equal(value[6:], numbered["layers"]["qkv"][2][:, 1, 6].T)
  up = stored["model.layers.0.mlp.up_proj.weight"].read()
  assert np.array_equal(up, numbered["layers"]["gate_up"][0][:, 1].T)


def test_gguf_has_a_name_for_each_tensor_of_its_families(model):
  family, config = model
  if family not in gguf.ARCHITECTURES:
    pytest.skip(f"{family} is not read from GGUF files")
  for row in parameters.of(config):
    for tensor in row.tensors:
      stem = tensor.rpartition(".")[0]
      assert stem in (gguf.NAMES if row.layered else gguf.TOP.values()), stem


@pytest.mark.parametrize("change, match", [
    (dict(kv_heads=3), "heads=10 is no multiple of kv_heads=3"),
    (dict(remat="all"), "remat='all'; choices: 'none', 'block', 'dots'"),
])
def test_impossible_decoders_are_refused(change, match):
  sizes = dict(vocab_size=40, width=22, layers=3, heads=10, kv_heads=2, head_dim=6, mlp_width=26)
  with pytest.raises(ValueError, match=match):
    transformer.Config(**{**sizes, **change})


@pytest.mark.parametrize("axes, rows, match", [
    ((1, 1, 4), 8, r"kv_heads=2 does not divide over tensor=4; choices for tensor: \[1, 2\]"),
    ((1, 4, 1), 8, r"width=22 does not divide over fsdp=4; choices for fsdp: \[1, 2, 11, 22\]"),
    ((2, 2, 1), 6, r"a batch=6 does not divide over data x fsdp=4"),
])
def test_a_mesh_that_does_not_divide_is_refused(axes, rows, match):
  config = transformer.Config(vocab_size=40, width=22, layers=3, heads=10, kv_heads=2, head_dim=6,
                              mlp_width=26)
  with pytest.raises(ValueError, match=match):
    parameters.check_mesh(config, sharding.make_mesh(*axes), rows, "a batch")
