"""What a function of arrays asks of its arguments, at its entrance and at trace time.

The rule: what is declared `Bool` is a flag, whatever type it comes in; arrays whose declarations
share a letter share that size, where a size of 1 is spread; and what is read is there. A function
under `checked` computes with such arguments alone, or raises an error that names the function, the
argument, the shapes and what to pass instead. Only types and shapes are looked at, so that nothing
of it is left in a compiled program.
"""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Declared, boolean, declared, name_of, real

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")

# columns that are often forgotten, and how to fill them
FILL = {
    "noise": "uniform numbers [B, T] that break ties, such as jax.random.uniform(key, mask.shape); "
             "jnp.zeros(mask.shape) breaks them by position",
    "old_logp": "log-probs [B, T] under the policy that sampled; on policy, "
                "jax.lax.stop_gradient(logp)",
    "ref_logp": "log-probs [B, T] under the reference policy",
    "adv": "advantages [B, T]; of one value a row, adv[:, None]",
    "mask": "[B, T], true on the response tokens that count",
}


def missing(function: str, name: str) -> str:
  """The sentence of an error: the function reads a column that is not there, and what it is."""
  return f"{function}() reads {name}, which is missing" + (
      f": {FILL[name]}" if name in FILL else "")


def checked(fn: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
  """fn behind the rule of this file, for the parameters that are annotated as arrays.

  Calls raise TypeError for an argument that is missing or None, ValueError for shapes that do not
  fit.
  """
  signature = inspect.signature(fn)
  found = {p.name: declared(p.annotation) for p in signature.parameters.values()}
  arrays = {name: kind for name, kind in found.items() if kind is not None}
  function = name_of(fn)

  @functools.wraps(fn)
  def call(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
    try:
      bound = signature.bind(*args, **kwargs)
    except TypeError as error:
      absent = list(signature.parameters)[len(args):]
      for name in (n for n in absent if n in arrays and n not in kwargs):
        raise TypeError(missing(function, name)) from error
      raise TypeError(f"{function}(): {error}") from error
    given = {name: bound.arguments[name] for name in arrays if name in bound.arguments}
    for name in [name for name, value in given.items() if value is None]:
      if signature.parameters[name].default is not None:
        raise TypeError(missing(function, name))
      del given[name]  # declared as an array or None
    given = {name: _as_declared(value, arrays[name].kind) for name, value in given.items()}
    sizes = _sizes(function, arrays, given)
    bound.arguments.update({name: _spread(value, arrays[name].dims, sizes)
                            for name, value in given.items()})
    return fn(*bound.args, **bound.kwargs)

  return call


def _as_declared(value: Any, kind: str) -> Any:
  """A flag as bool; whole numbers where floats are declared as floats, so that nothing that is cast
  to their type is rounded. What is no array is left as it is."""
  if kind == "bool":
    return boolean(value)
  if kind == "float" and isinstance(value, (Array, np.ndarray)) and value.dtype.kind in "biu":
    return real(jnp.asarray(value))
  return value


def _axes(dims: tuple[str, ...], shape: tuple[int, ...]) -> list[tuple[str, Any]] | None:
  """(name, size) of every axis, those of a "*b" together; None where the ranks differ."""
  at = next((i for i, name in enumerate(dims) if name.startswith("*")), None)
  if at is None:
    return list(zip(dims, shape, strict=True)) if len(dims) == len(shape) else None
  after = len(dims) - at - 1
  if len(shape) < at + after:
    return None
  end = len(shape) - after
  return [*zip(dims[:at], shape[:at], strict=True), (dims[at], shape[at:end]),
          *zip(dims[at + 1:], shape[end:], strict=True)]


def _sizes(function: str, arrays: dict[str, Declared], given: dict[str, Any]) -> dict[str, Any]:
  """The size of every letter. Raises ValueError where ranks or sizes do not fit."""
  shapes = {name: np.shape(value) for name, value in given.items()}
  shapes = {name: shape for name, shape in shapes.items() if shape}  # a scalar fits anywhere
  alike = {(arrays[name].dims, shape) for name, shape in shapes.items()}
  if len(alike) == 1 and _axes(*next(iter(alike))) is None and len(shapes) == len(given):
    return {}  # such as packed tokens [N] for a function of tokens, all of them declared [B, T]
  seen: dict[str, Counter[Any]] = {}
  for name, shape in shapes.items():
    axes = _axes(arrays[name].dims, shape)
    if axes is None:
      raise ValueError(_said(function, name, arrays, shapes))
    for letter, size in axes:
      if letter.isdigit():
        seen.setdefault(letter, Counter())[int(letter)] += len(shapes)  # as declared, no vote
      seen.setdefault(letter, Counter())[size] += 1
  # what most arrays have, of as many the first; an axis of 1 is spread to it
  sizes = {letter: next((size for size, _ in count.most_common() if size != 1), 1)
           for letter, count in seen.items()}
  for name, shape in reversed(shapes.items()):
    for letter, size in _axes(arrays[name].dims, shape) or ():
      if size not in (1, sizes[letter]):
        raise ValueError(_said(function, name, arrays, shapes))
  return sizes


def _said(function: str, name: str, arrays: dict[str, Declared],
          shapes: dict[str, tuple[int, ...]]) -> str:
  """The sentence of an error: what does not fit, the shapes, and what to pass."""
  form = lambda n: f"[{', '.join(arrays[n].dims)}]"
  others = ", ".join(f"{n} {form(n)} has {shapes[n]}" for n in shapes if n != name)
  dims, shape = arrays[name].dims, shapes[name]
  variadic = any(letter.startswith("*") for letter in dims)
  mend = "sizes of the same letter must agree"
  if not variadic and len(shape) == 1 and len(dims) == 2:
    mend = f"one value a row is {name}[:, None]"
  elif not variadic and len(shape) == len(dims) + 1:
    mend = f"it takes one value for each {' and '.join(dims) or 'batch'}: a mean, a sum or a column"
  elif len(shape) == len(dims) == 2 and _fits_turned(name, arrays, shapes):
    mend = f"the axes are swapped: pass {name}.T"
  return f"{function}(): {name} {form(name)} has shape {shape}, {others or 'alone'}; {mend}"


def _fits_turned(name: str, arrays: dict[str, Declared],
                 shapes: dict[str, tuple[int, ...]]) -> bool:
  """Whether the transpose of an array agrees with all others."""
  others = {letter: size for n, shape in shapes.items() if n != name
            for letter, size in _axes(arrays[n].dims, shape) or ()}
  turned = zip(arrays[name].dims, reversed(shapes[name]), strict=True)
  return all(others.get(letter, size) == size for letter, size in turned)


def _spread(value: Any, dims: tuple[str, ...], sizes: dict[str, Any]) -> Any:
  """value with every axis of 1 as long as its letter elsewhere: counts over it are then right."""
  shape = np.shape(value)
  if not dims or any(name.startswith("*") for name in dims):
    return value
  if any(name not in sizes for name in dims):
    return value  # a scalar, and nothing says how many
  full = tuple(sizes[name] for name in dims)
  return value if shape == full else jnp.broadcast_to(value, full)
