"""Arguments of public functions: flags of any type, shapes that fit, nothing missing.

The laws are generated from the annotations of every public function of core, methods and analysis.
"""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entrolab
from entrolab import aggregate, analysis, arguments, batch, methods, ranks, vocab
from entrolab.methods import clip_cov, gpg, grpo, ppo, spear
from entrolab.objective import Objective, term
from entrolab.typing import Bool, Float, declared
from tests import probe

CORE = ("aggregate", "batch", "control", "fused", "keys", "microbatch", "nucleus", "objective",
        "ranks", "sharding", "statistics", "vocab")
SIZES = dict(B=probe.B, T=probe.T, V=probe.V, P=probe.B // probe.G, G=probe.G, S=3, C=5, K=4, M=2)
STATISTICS = {name: -np.linspace(0.1, 1.0, probe.B * probe.T, dtype=np.float32).reshape(
    probe.B, probe.T) for name in vocab.NAMES}
# of parameters that are neither arrays nor have a default
PLAIN = dict(k=3, q=0.7, mu=0.4, drawn_from="pi", alpha=0.3, beta=0.5, gamma=0.5, rate=0.1,
             vocab=probe.V, spec=vocab.Spec(), before=STATISTICS,
             after={name: 0.9 * x for name, x in STATISTICS.items()})
# called by `fused` and `tangents` alone; none takes a flag
INTERNAL = ("nucleus.", "statistics.", "keys.", "fused.block_logits", "fused.local_index",
            "fused.forward", "fused.dense_gradient", "fused.nucleus_gradient")


def public():
  """Every public function of core, methods and analysis that declares an array among its inputs."""
  modules = [f"entrolab.{name}" for name in CORE]
  for package in (methods, analysis):
    found = pkgutil.iter_modules(package.__path__)
    modules += [f"{package.__name__}.{info.name}" for info in found]
  found = []
  for module in map(importlib.import_module, modules):
    for name, fn in vars(module).items():
      own = inspect.isfunction(fn) and fn.__module__ == module.__name__ and name[0] != "_"
      if own and not probe.label(fn).startswith(INTERNAL) and arrays_of(fn):
        found.append(fn)
  return found


def arrays_of(fn):
  """What each array of a signature is declared to be; of those that may be absent only `known`."""
  parameters = inspect.signature(fn).parameters.values()
  found = {p.name: declared(p.annotation) for p in parameters
           if p.default is not None or p.name == "known"}
  return {name: said for name, said in found.items() if said is not None}


FUNCTIONS = public()
FLAGGED = [fn for fn in FUNCTIONS if any(said.kind == "bool" for said in arrays_of(fn).values())]


def drawn(fn, said, name, rng):
  """An array as it is declared; the columns of a method are drawn as for the other laws."""
  drawer = probe.drawers(fn).get(name)
  if drawer:
    return drawer(rng)
  shape = [SIZES.get(letter.lstrip("*"), 6) for letter in said.dims]
  if name == "steps":
    return np.full(shape, 2, np.int32)
  if said.kind == "bool":
    return rng.random(shape) < 0.6
  if said.kind == "int":
    return rng.integers(0, 2, shape).astype(np.int32)
  values = rng.normal(size=shape).astype(np.float32)
  return -np.abs(values) if "logp" in name else np.abs(values)


def arguments_of(fn, seed=0):
  """(arrays by name, everything else by name) for a call."""
  rng, said = np.random.default_rng(seed), arrays_of(fn)
  arrays = {name: drawn(fn, said[name], name, rng) for name in said}
  values = {**PLAIN, **probe.KNOBS, **probe.added(fn, "KNOBS")}
  rest = {p.name: values[p.name] for p in inspect.signature(fn).parameters.values()
          if p.name not in said and p.default is p.empty}
  return arrays, rest


def call(fn, arrays, rest):
  """The outputs of fn by a call with names, as a list of arrays."""
  placed = {**arrays, **rest}
  order = [p for p in inspect.signature(fn).parameters.values() if p.name in placed]
  by_place = [placed[p.name] for p in order if p.kind is not p.KEYWORD_ONLY]
  return jax.tree.leaves(fn(*by_place, **{p.name: placed[p.name] for p in order
                                          if p.kind is p.KEYWORD_ONLY}))


def outputs_and_slopes(fn, arrays, rest):
  """Outputs, and the gradients of their weighted sum by every float input."""
  live = {name: jnp.asarray(x) for name, x in arrays.items() if x.dtype == np.float32
          and arrays_of(fn)[name].kind == "float"}
  fixed = {name: jnp.asarray(x) for name, x in arrays.items() if name not in live}

  def total(live):
    out = call(fn, {**fixed, **live}, rest)
    floats = [x for x in out if jnp.issubdtype(x.dtype, jnp.floating)]
    weight = lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    return sum([jnp.sum(weight(x) * x) for x in floats], jnp.zeros(())), out

  slopes, out = jax.grad(total, has_aux=True)(live)
  return [np.asarray(x) for x in (*out, *jax.tree.leaves(slopes))]


@pytest.mark.parametrize("kind", [np.int32, np.float32], ids=["int32", "float32"])
@pytest.mark.parametrize("fn", FLAGGED, ids=probe.label)
def test_flags_of_any_type_give_the_program_of_boolean_ones(fn, kind):
  """The same to the letter as with `flag != 0` for each, hence the same numbers and gradients."""
  arrays, rest = arguments_of(fn)
  flags = [name for name, said in arrays_of(fn).items() if said.kind == "bool"]
  numbers = {**arrays, **{name: arrays[name].astype(kind) for name in flags}}
  got = jax.make_jaxpr(lambda given: call(fn, given, rest))(numbers)
  want = jax.make_jaxpr(lambda given: call(
      fn, {**given, **{name: given[name] != 0 for name in flags}}, rest))(numbers)
  assert str(got) == str(want)


@pytest.mark.slow
@pytest.mark.parametrize("fn", FLAGGED, ids=probe.label)
def test_flags_of_any_type_give_the_numbers_of_boolean_ones(fn):
  """The law above, run: values and gradients."""
  arrays, rest = arguments_of(fn)
  want = outputs_and_slopes(fn, arrays, rest)
  flags = [name for name, said in arrays_of(fn).items() if said.kind == "bool"]
  for kind in (np.int32, np.float32):
    numbers = {name: arrays[name].astype(kind) for name in flags}
    got = outputs_and_slopes(fn, {**arrays, **numbers}, rest)
    for one, other in zip(got, want, strict=True):
      assert one.dtype == other.dtype
      np.testing.assert_array_equal(one, other)


def test_the_laws_see_every_kind_of_function():
  labels = {probe.label(fn) for fn in FLAGGED}
  assert {"clip_cov.keep_mask", "aggregate.token_mean", "ranks.masked_mean", "spear.usable_rows",
          "empg.gains", "canon.conditional", "cond_entropy.trajectory"} <= labels
  assert {"vocab.from_logits", "fused.fused", "kl.k3"} <= {probe.label(fn) for fn in FUNCTIONS}
  assert len(FLAGGED) > 80 and len(FUNCTIONS) > 180


@pytest.mark.parametrize("fn", FUNCTIONS, ids=probe.label)
def test_every_public_function_of_arrays_is_checked(fn):
  assert inspect.unwrap(fn) is not fn, f"write @checked above {probe.label(fn)}"


def fixed(said):
  return not any(letter.startswith("*") or letter.isdigit() for letter in said.dims)


PAIRS = [(fn, name) for fn in FUNCTIONS for name, said in arrays_of(fn).items()
         if fixed(said) and len(said.dims) >= 2 and len(arrays_of(fn)) > 1]


@pytest.mark.parametrize("fn, name", PAIRS, ids=lambda x: x if isinstance(x, str)
                         else probe.label(x))
def test_a_row_for_an_array_is_an_error_with_the_mend(fn, name):
  """[B] against [B, T] would be spread over the wrong axis wherever B and T are alike."""
  arrays, rest = arguments_of(fn)
  short = {**arrays, name: arrays[name][..., 0]}
  with pytest.raises(ValueError) as failure:
    call(fn, short, rest)
  said = str(failure.value)
  form = f"[{', '.join(arrays_of(fn)[name].dims)}]"
  assert said.startswith(f"{probe.label(fn)}(): {name} {form} has shape {short[name].shape}")
  assert f"{name}[:, None]" in said or len(form) > len("[B, T]")


def test_the_gradient_of_clip_cov_keeps_its_direction():
  """`~` of 0 and 1 as numbers is -1 and -2: every weight was negative."""
  rng = np.random.default_rng(0)
  shape = (8, 32)
  columns = dict(old_logp=-rng.exponential(size=shape), adv=rng.normal(size=shape),
                 noise=rng.random(shape), entropy=np.ones(shape), rewards=np.zeros(8))
  columns = {name: jnp.asarray(x, jnp.float32) for name, x in columns.items()}
  objective = Objective(surrogate=term(ppo.clipped_ratio), advantage=term(
      grpo.group_advantage, size=2), weights=term(clip_cov.keep_mask, fraction=0.1, lower=0.1))
  mask = rng.random(shape) < 0.8
  grad = lambda mask: jax.grad(lambda x: objective.loss(
      {**columns, "logp": x, "mask": jnp.asarray(mask)})[0])(columns["old_logp"] + 0.1)
  want = grad(mask)
  assert np.abs(want).max() > 1e-4
  for kind in (np.int32, np.float32, np.uint8, np.float16):
    np.testing.assert_array_equal(grad(mask.astype(kind)), want)


def test_a_size_of_one_is_spread_so_that_counts_are_right():
  x = jnp.arange(12.0).reshape(3, 4)
  rows = jnp.asarray([[1], [0], [1]])
  np.testing.assert_array_equal(ranks.masked_mean(x, rows), x[jnp.asarray([0, 2])].mean())
  np.testing.assert_array_equal(ranks.masked_mean(x, True), x.mean())
  np.testing.assert_array_equal(ranks.centred(x[:, :1], jnp.ones((3, 4), bool)).shape, (3, 4))


def test_whole_numbers_are_not_rounded():
  """What is cast to the type of rewards would lose its fraction."""
  whole = jnp.asarray([1, 0, 1, 0])
  np.testing.assert_allclose(gpg.scaled_advantage(whole, size=2), [1.0, -1.0, 1.0, -1.0])
  paid = spear.tool_reward(whole, jnp.asarray([3, 0, 0, 1]), jnp.asarray(1.0))
  np.testing.assert_allclose(paid, [1.3, 0.0, 1.0, 0.1], rtol=1e-6)
  np.testing.assert_allclose(grpo.group_advantage(whole > 0, size=2),
                             grpo.group_advantage(whole.astype(float), size=2))


def test_a_head_with_its_axes_swapped_says_so():
  hidden, head = jnp.ones((2, 3, 8)), jnp.ones((20, 8))
  tokens, spec = jnp.zeros((2, 3), jnp.int32), vocab.Spec()
  assert vocab.fused(hidden, head, tokens, spec)["logp"].shape == (2, 3)
  with pytest.raises(ValueError, match=r"fused\(\): head \[V, D\] has shape \(8, 20\), hidden "
                     r"\[\*b, D\] has \(2, 3, 8\), .*pass head.T"):
    vocab.fused(hidden, head.T, tokens, spec)
  with pytest.raises(ValueError, match=r"tokens \[\*b\] has shape \(2,\)"):
    vocab.fused(hidden, head, tokens[:, 0], spec)
  with pytest.raises(ValueError, match=r"from_logits\(\): tokens \[\*b\] has shape \(3, 2\)"):
    vocab.from_logits(jnp.ones((2, 3, 5)), tokens.T, spec)


def test_missing_noise_is_named_with_what_it_is():
  x = jnp.ones((2, 3))
  mask = x > 0
  said = r"clip_cov.keep_mask\(\) reads noise, which is missing: .*jax.random.uniform"
  with pytest.raises(TypeError, match=said):
    clip_cov.keep_mask(x, x, x, mask)
  with pytest.raises(TypeError, match=said):
    clip_cov.keep_mask(x, x, x, mask, None)
  with pytest.raises(TypeError, match=said + ".*filled: adv, logp"):
    term(clip_cov.keep_mask)(dict(logp=x, old_logp=x, adv=x, mask=mask))
  with pytest.raises(TypeError, match=r"token_mean\(\): .*unexpected keyword argument 'maks'"):
    aggregate.token_mean(mask, maks=1)


def test_shapes_are_checked_when_traced_and_leave_nothing_behind():
  x = jnp.ones((4, 4))
  with pytest.raises(ValueError, match=r"adv \[B, T\] has shape \(4,\).*adv\[:, None\]"):
    jax.jit(ppo.clipped_ratio)(x, x, x[0])
  plain = jax.make_jaxpr(inspect.unwrap(ppo.clipped_ratio))(x, x, x)
  assert str(jax.make_jaxpr(ppo.clipped_ratio)(x, x, x)) == str(plain)


def test_arrays_that_are_all_alike_may_have_another_rank():
  """Packed tokens [N] stand for [B, T] in a function of tokens."""
  x = jnp.linspace(-2.0, -0.1, 6)
  got = ppo.clipped_ratio(x, x - 0.5, jnp.ones(6))
  want = ppo.clipped_ratio(x.reshape(2, 3), x.reshape(2, 3) - 0.5, jnp.ones((2, 3)))
  np.testing.assert_array_equal(got, want.ravel())
  with pytest.raises(ValueError, match=r"adv \[B, T\] has shape \(2,\)"):
    ppo.clipped_ratio(x.reshape(2, 3), x.reshape(2, 3), jnp.ones(2))


def test_flags_of_a_batch_are_those_that_it_declares():
  fields = inspect.get_annotations(batch.Batch)
  kinds = {name: str(note) for name, note in fields.items()}
  assert batch.FLAGS == {name for name, kind in kinds.items()
                         if "'bool'" in kind or "Bool[" in kind}


def test_a_new_function_needs_no_more_than_its_annotations():
  @arguments.checked
  def twice(x: Float[jax.Array, "B T"], on: Bool[jax.Array, " B"]) -> jax.Array:
    """x where the row is on."""
    return jnp.where(~on[:, None], 0.0, x)

  x = jnp.ones((2, 3))
  np.testing.assert_array_equal(twice(x, jnp.asarray([1, 0])), [[1, 1, 1], [0, 0, 0]])
  with pytest.raises(ValueError, match=r"on \[B\] has shape \(2, 3\).*takes one value for each B"):
    twice(x, x)
  with pytest.raises(ValueError, match=r"on \[B\] has shape \(3,\), x \[B, T\] has \(2, 3\)"):
    twice(x, jnp.ones(3))
  assert entrolab.__doc__
