"""Programs for pods: the command line, what a compiled text is said to cost, the chips, the table;
slow: a small topology compiles, fits, and holds no array it should not."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import sharding
from entrolab.cost import chips, hlo, hlo_cost
from entrolab.models import parameters, tiny, transformer

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import aot_compile  # noqa: E402

LIBTPU = importlib.util.find_spec("libtpu") is not None
STEP = ["--preset", "qwen2.5-math-7b", "--topology", "v5p:4x4x4"]


def mesh_of(*sizes):
  return jax.make_mesh(sizes, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def compiled(fn, *args):
  return hlo.Program(jax.jit(fn).lower(*args).compile().as_text())


def cost_of(fn, *args):
  return hlo_cost.analyse(compiled(fn, *args))


def abstract(mesh, shape, *axes):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))


def test_arguments_of_a_row_are_those_of_the_issue():
  args = aot_compile.parse([*STEP, "--set", "mesh.fsdp=8", "--set", "sampling.max_tokens=1024"])
  assert (args.preset, args.topology, args.model) == ("qwen2.5-math-7b", "v5p:4x4x4", None)
  assert args.set == ["mesh.fsdp=8", "sampling.max_tokens=1024"]


@pytest.mark.parametrize("argv, said", [
    (["--preset", "qwen9", "--topology", "v5e:2x2"], "invalid choice: 'qwen9'"),
    (["--preset", "tiny"], "--topology"),
    (["--preset", "tiny", "--topology", "v5e:2x2", "--model", "gpt"], "invalid choice: 'gpt'")])
def test_unknown_arguments_stop_with_the_choices(argv, said, capsys):
  with pytest.raises(SystemExit):
    aot_compile.parse(argv)
  assert said in capsys.readouterr().err


@pytest.mark.parametrize("topology, said", [
    ("v5p", "write a chip and a shape"), ("v9:2x2", "choices: v4, v5e"), ("v5e:2by2", "a shape")])
def test_topologies_are_refused_by_name(topology, said):
  with pytest.raises(ValueError, match=said):
    aot_compile.devices_of(topology)


@pytest.mark.parametrize("name, millions", [("qwen2.5-0.5b", 494.0), ("qwen2.5-math-1.5b", 1543.7),
                                            ("qwen2.5-1.5b", 1543.7), ("qwen2.5-math-7b", 7615.6)])
def test_sizes_have_the_published_number_of_parameters(name, millions):
  assert parameters.count(aot_compile.SIZES[name]) / 1e6 == pytest.approx(millions, abs=0.1)


def test_loops_multiply_flops_and_collectives():
  mesh, layers, rows, width, inner = mesh_of(2, 4), 5, 16, 64, 128

  def fn(w, x):
    def layer(x, w):
      h = jnp.tanh(jnp.einsum("bd,df->bf", x, w))
      y = jnp.einsum("bf,df->bd", h, w)
      return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("data"))), None
    return jax.lax.scan(layer, x, w)[0]

  cost = cost_of(fn, abstract(mesh, (layers, width, inner), None, None, "tensor"),
                 abstract(mesh, (rows, width), "data"))
  assert cost.flops == layers * 2 * (2 * (rows // 2) * width * (inner // 4))
  [one] = cost.collectives  # the partial sums of the second matmul, over the tensor axis
  assert (one.kind, one.times, one.group) == ("all-reduce", layers, (0, 1, 2, 3))
  assert one.bytes == 4 * (rows // 2) * width
  assert one.wire == layers * one.bytes * 2 * 3 / 4


@pytest.mark.parametrize("before, after, kind, sent", [
    (("data",), (), "all-gather", 1 / 2), (("tensor",), (), "all-gather", 3 / 4),
    (("tensor", None), (None, "tensor"), "all-to-all", 3 / 16)])
def test_moving_an_array_sends_the_bytes_of_its_ring(before, after, kind, sent):
  mesh, shape = mesh_of(2, 4), (32, 64)
  fn = lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*after)))
  cost = cost_of(fn, abstract(mesh, shape, *before))
  assert [c.kind for c in cost.collectives] == [kind]
  assert cost.collectives[0].wire == pytest.approx(4 * math.prod(shape) * sent)


def test_a_slice_of_a_stack_is_read_as_a_slice():
  stack = jax.ShapeDtypeStruct((64, 128, 128), jnp.float32)
  fn = lambda w, x: jax.lax.fori_loop(0, 64, lambda i, x: jnp.sin(x) + w[i], x)
  cost = cost_of(fn, stack, jax.ShapeDtypeStruct((128, 128), jnp.float32))
  whole = 4 * 64 * 128 * 128
  assert whole <= cost.bytes < 8 * whole  # not 64 times the stack


CONVOLUTION = """HloModule m

ENTRY %main (a: bf16[16,2,64], b: bf16[16,64,8]) -> f32[16,2,8] {{
  %a = bf16[16,2,64]{{2,1,0}} parameter(0)
  %b = bf16[16,64,8]{{2,1,0}} parameter(1)
  ROOT %c = f32[16,2,8]{{2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels=0bf_0io->0bf
}}
"""


def test_a_batched_matmul_written_as_a_convolution_counts_once():
  text = CONVOLUTION.format(window="size=16 stride=15 lhs_dilate=16")
  assert hlo_cost.analyse(hlo.Program(text)).flops == 2 * 16 * 2 * 64 * 8


@pytest.mark.parametrize("text, group", [
    ("replica_groups={{0,2},{1,3}}", (0, 2)), ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'c'}", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1))])
def test_groups_of_devices_in_every_notation(text, group):
  assert hlo.group_of(text) == group


def test_unknown_notations_are_refused():
  with pytest.raises(ValueError, match="unknown groups of devices"):
    hlo.group_of("replica_groups=everyone")


def test_a_chain_of_fused_pieces_is_one_collective():
  piece = ('  %{name} = f32[8]{{0}} all-gather(%p), channel_id=1, replica_groups={{{{0,1}}}}, '
           'dimensions={{0}}, frontend_attributes={{chain_id="3"}}\n')
  text = ("HloModule m\n\nENTRY %main (p: f32[4]) -> f32[8] {\n  %p = f32[4]{0} parameter(0)\n"
          + piece.format(name="a") + "  ROOT " + piece.format(name="b").strip() + "\n}\n")
  assert len(hlo_cost.analyse(hlo.Program(text)).collectives) == 1


def test_a_slice_of_what_is_laid_out_anew_as_it_is_read_is_a_slice():
  text = """HloModule m
%copy_of (p: s8[24,8,128]) -> s8[24,8,128] {
  %p = s8[24,8,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[24,8,128]{2,1,0:T(8,128)(4,1)} copy(%p)
}
%slice_of (a: s8[24,8,128], i: s32[]) -> s8[1,8,128] {
  %a = s8[24,8,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %f = s8[24,8,128]{2,1,0:T(8,128)(4,1)} fusion(%a), kind=kLoop, MAYBEcalls=%copy_of
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = s8[1,8,128]{2,1,0} dynamic-slice(%f, %i, %z, %z), dynamic_slice_sizes={1,8,128}
}
ENTRY %main (x: s8[24,8,128], i: s32[]) -> s8[1,8,128] {
  %x = s8[24,8,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %out = s8[1,8,128]{2,1,0:T(8,128)(4,1)} fusion(%x, %i), kind=kLoop, calls=%slice_of
}
"""
  layer = 8 * 128
  cost = lambda more: hlo_cost.analyse(hlo.Program(text.replace("MAYBE", more))).bytes
  assert cost("output_to_operand_aliasing={{}: (0, {})}, ") == pytest.approx(2 * layer, abs=8)
  assert cost("") == pytest.approx(25 * layer, abs=8)  # a copy of its own reads all layers


def test_a_loop_without_constants_is_refused():
  fn = lambda n, x: jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x), x)
  number, four = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.float32)
  program = compiled(fn, number, four)
  with pytest.raises(ValueError, match="are not constants of the program"):
    hlo_cost.analyse(program)


def test_a_search_counts_the_rounds_that_are_said():
  def fn(x):
    with jax.named_scope("search"):
      return jax.lax.while_loop(lambda x: (x < 9.0).any(), lambda x: x @ x, x)

  text = jax.jit(fn).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
  assert hlo_cost.analyse(hlo.Program(text, {"search": 5})).flops == 5 * 2 * 8 ** 3
  with pytest.raises(ValueError, match="are not constants of the program"):
    hlo_cost.analyse(hlo.Program(text, {"other": 5}))


def test_chips_state_peaks_and_sources():
  assert set(chips.CHIPS) == {"v4", "v5e", "v5p", "v6e", "v7x", "A100", "H100", "H200", "B200"}
  for chip in chips.CHIPS.values():
    assert 1e14 < chip.flops < 3e15 and 1e10 < chip.memory < 2e11 and chip.source
    assert chip.link < chip.bandwidth < 1e13
    assert 100 < chip.flops / chip.bandwidth < 600  # FLOPs a byte at the ridge
  with pytest.raises(ValueError, match="choices: v4, v5e, v5p, v6e, A100, H100"):
    chips.get("v3")


def test_the_roofline_is_the_slowest_of_three():
  v5e = chips.get("v5e")
  times = chips.roofline(v5e, 197e12, 2 * 819e9, 0.5 * 200e9)
  assert (times.compute, times.memory, times.link) == (1.0, 2.0, 0.5)
  assert (times.seconds, times.serial, times.bound) == (2.0, 3.5, "memory")


def test_phases_split_a_sampler_into_prefill_and_one_step():
  def fn(w, x):
    x = x @ w
    go = lambda carry: (carry[0] < 9) & (carry[1] < 1e9).all()
    return jax.lax.while_loop(go, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w @ w)), (0, x))

  square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  program = compiled(fn, square, square)
  parts = aot_compile.phases(program, 9)
  assert parts["prefill"].flops == 2 * 8 ** 3 and parts["decode"].flops == 4 * 8 ** 3
  assert hlo_cost.analyse(program).flops == parts["prefill"].flops + 9 * parts["decode"].flops
  with pytest.raises(ValueError, match="0 loops of 7 steps"):
    aot_compile.phases(program, 7)


def test_a_document_keeps_one_set_of_rows_for_a_model_and_topology(tmp_path):
  page = tmp_path / "pods.md"
  page.write_text(f"before\n{aot_compile.BEGIN}{aot_compile.END}\nafter\n")
  facts = {"model": "m", "topology": "v5e:2x2", "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
           "rows": {"rollout": 8, "update": 4, "micro_batch": 2}, "prompt": 1, "response": 2,
           "programs": [{"program": "step", "fits": False, "error": "needs 20G of 16G"}]}
  for topology in ("v5e:2x2", "v5e:4x4", "v5e:2x2"):
    aot_compile.write(page, {**facts, "topology": topology}, f"command {topology}")
  text = page.read_text()
  assert text.startswith("before\n") and text.endswith("\nafter\n")
  assert text.count("needs 20G") == 2 and text.count("command v5e:2x2") == 1
  with pytest.raises(ValueError, match="has no lines"):
    (tmp_path / "empty.md").write_text("")
    aot_compile.write(tmp_path / "empty.md", facts, "command")


def test_the_committed_table_has_every_row_and_each_fits():
  text = (ROOT / "docs/pods.md").read_text()
  table = text.partition(aot_compile.BEGIN)[2].partition(aot_compile.END)[0]
  for row in ("qwen2.5-0.5b, v5e:1x1", "qwen2.5-0.5b, v5e:2x4", "qwen2.5-1.5b, v5e:4x4",
              "qwen2.5-math-7b, v5p:4x4x4", "qwen2.5-math-7b, v6e:8x8"):
    assert table.count(f"| {row} |") == 4, f"step, serve, prefill and decode of {row}"
    assert f"--topology {row.split(', ')[1]}" in table and f"  # {row}" in table
  assert "does not fit" not in table


def test_rows_stay_on_their_devices():
  mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  size = transformer.Config(vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8,
                            mlp_width=96)
  rows, length = 8, 16
  tree = jax.eval_shape(lambda key: transformer.init(size, key), jax.random.key(0))
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s))
  params = jax.tree.map(place, tree, parameters.specs(size))
  ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding.rows(mesh))
  layout = sharding.Layout(mesh, ("data", "fsdp"), "tensor", "fsdp")
  held = dataclasses.replace(size, layout=layout)
  states = compiled(lambda p, x: transformer.hidden_states(held, p, x, x, x), params, ids)
  # queries, keys and gates of all rows on one device: what the compiler makes without a layout
  whole = {str(shape) for shape, _ in states.arrays().values()
           if len(shape.dims) > 3 and shape.dims[:2] == (rows, length)}
  assert not whole


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed: pip install 'jax[tpu]'")
@pytest.mark.parametrize("fsdp, tensor, weights", [(4, 1, "model"), (2, 2, "model"),
                                                   (4, 1, "int8")])
def test_a_small_topology_compiles_and_fits(fsdp, tensor, weights):
  # blocks of the vocabulary would else be all of it: it has 120 entries
  settings = [f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}", "training.micro=2",
              f"sampling.weights={weights}",
              "training.dtype=bfloat16", "training.remat=block", "objective.vocab.chunk=32"]
  done = subprocess.run(
      [sys.executable, "scripts/aot_compile.py", "--config", "experiments/toy.py",
       "--preset", "tiny", "--topology", "v5e:2x2",
       *(word for entry in settings for word in ("--set", entry))],
      cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  facts = json.loads(done.stdout.splitlines()[-1])
  assert [p["program"] for p in facts["programs"]] == ["step", "serve", "prefill", "decode"]
  assert all(p["fits"] and p["seconds"] > 0 for p in facts["programs"])
  step, serve, prefill, decode = facts["programs"]
  assert step["flops"] > prefill["flops"] > decode["flops"] > serve["flops"] == 0
  assert step["logits"] == [], "an array [B, T, V]"
  # gathered at once: the head, or the gates of one layer; not all layers, nor states of all rows
  size = tiny.load()[0]
  most = max(size.vocab_size, 2 * size.mlp_width) * size.width
  assert step["largest_gather"]["bytes"] <= 2 * most // tensor
  if tensor == 1:  # a token of a row that has its device and the parameters needs nobody else
    assert sum(c["wire"] for c in decode["collectives"].values()) < 1000
