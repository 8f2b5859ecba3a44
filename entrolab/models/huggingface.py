"""Checkpoints of the Hugging Face layout: config.json, safetensors in one file or in shards.

Llama, Qwen2 and Qwen3 decoders go in and out; whatever this decoder would compute differently is
refused. `parameters.PARAMETERS` lists the tensors of every parameter; `assemble` and `tensors`
are the two directions.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from entrolab.models import parameters
from entrolab.models.huggingface_config import describe, read_config, read_json, write_json
from entrolab.models.parameters import Config, Parameter, Params
from entrolab.tasks.task import within

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SAVED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
SHARD_BYTES = 4 * 2 ** 30
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one tensor of a checkpoint belongs in the tree of parameters.

  A matrix is stored there as [out, in]: first the axes that its matmul leaves, then those that it
  sums over, each side flattened, so that query head k R + r is the one that reads key-value head k.
  """
  tensor: str  # its Hugging Face name
  parameter: Parameter  # of the tree, whole or in part
  layer: int | None  # None outside the layers
  sizes: dict[str, int]  # lengths of the parameter's axes, `layers` left out, in this tensor
  fused: str | None  # the axis of which the tensor has a part, if it does not have all
  start: int  # where its part begins on that axis

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the tensor in the checkpoint: [out, in], or [out] of a gain or bias."""
    length = lambda summed: math.prod(size for axis, size in self.sizes.items()
                                      if (axis in self.parameter.summed) == summed)
    return (length(False), length(True)) if self.parameter.summed else (length(False),)

  def view(self, params: Params) -> np.ndarray:
    """Its part of the parameter, which may be written to."""
    leaf = self.parameter.within(params)
    if self.layer is not None:
      leaf = leaf[self.layer]
    part = slice(self.start, self.start + self.sizes[self.fused]) if self.fused else slice(None)
    return leaf[tuple(part if axis == self.fused else slice(None) for axis in self.sizes)]

  def arranged(self, x: np.ndarray) -> np.ndarray:
    """The stored tensor in the axes of `view`; only reshapes and transposes."""
    stored = [axis for axis in self.parameter.channels if axis in self.sizes]
    stored += self.parameter.summed
    return x.reshape([self.sizes[axis] for axis in stored]).transpose(
        [stored.index(axis) for axis in self.sizes])


def _places(config: Config) -> Iterator[Place]:
  """Every tensor of a checkpoint of this decoder."""
  rows = parameters.of(config)
  for row in rows:
    if not row.layered:
      yield from _places_of(config, row, None)
  for layer in range(config.layers):
    for row in rows:
      if row.layered:
        yield from _places_of(config, row, layer)


def _places_of(config: Config, row: Parameter, layer: int | None) -> Iterator[Place]:
  """The tensors of one parameter, in one layer."""
  lengths, parts = parameters.sizes(config), parameters.fused(config)
  sizes = {axis: lengths[axis] for axis in row.axes if axis != "layers"}
  prefix = "" if layer is None else f"model.layers.{layer}."
  fused = next((axis for axis in row.axes if axis in parts), None)
  start = 0
  for at, tensor in enumerate(row.tensors):
    if fused is not None:
      sizes = {**sizes, fused: parts[fused][at]}
    yield Place(prefix + tensor, row, layer, sizes, fused, start)
    start += sizes[fused] if fused else 0


class Stored(NamedTuple):
  """A tensor in a file."""
  where: str  # file and name, for messages
  shape: tuple[int, ...]  # as it is stored
  read: Callable[[], np.ndarray]  # reads it, as late as possible: files are large


def assemble(config: Config, stored: Mapping[str, Stored], source: str,
             called: Callable[[str], str] = str) -> Params:
  """The float32 parameter tree out of tensors by their Hugging Face names; one is read at a time.

  called: what the source calls a tensor. Raises ValueError for a tensor that is missing, has
  another shape or is left over, before any is read.
  """
  places = {place.tensor: place for place in _places(config)}
  for name, place in places.items():
    if name not in stored:
      raise ValueError(f"{source}: no tensor {called(name)} (shape {place.shape})")
    if stored[name].shape != place.shape:
      raise ValueError(f"{stored[name].where}: shape {stored[name].shape}, wanted {place.shape}")
  extra = sorted(called(name) for name in stored.keys() - places.keys())
  if extra:
    raise ValueError(f"{source}: {len(extra)} tensors that this decoder has no place for: "
                     f"{', '.join(extra[:5])}")
  params = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), parameters.shapes(config))
  for name, place in places.items():
    place.view(params)[...] = place.arranged(stored[name].read())
  return params


def _stored(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
  """Every tensor of the checkpoint by name. Raises ValueError where index and files disagree."""
  single, index = folder / SINGLE, folder / INDEX
  if not single.is_file() and not index.is_file():
    raise FileNotFoundError(f"{folder}: neither {SINGLE} nor {INDEX}; checkpoints in other "
                            "formats (*.bin, *.pth) are not read")
  listed = None if single.is_file() else read_json(index).get("weight_map")
  if not single.is_file() and not isinstance(listed, dict):
    raise ValueError(f"{index}: no object under 'weight_map'")
  names = [SINGLE] if listed is None else sorted({str(name) for name in listed.values()})
  found: dict[str, Stored] = {}
  for name in names:
    if pathlib.PurePath(name).name != name:
      raise ValueError(f"{index}: shard {name!r} is not a plain file name")
    path = folder / name
    if not path.is_file():
      raise FileNotFoundError(f"{path}: no such file, and {INDEX} lists it")
    try:
      file = stack.enter_context(safe_open(path, "np"))
    except SafetensorError as error:
      raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    for key in file.keys():
      if listed is not None and listed.get(key) != name:
        raise ValueError(f"{path}: has {key}, which {INDEX} puts in {listed.get(key)}")
      head = file.get_slice(key)
      if head.get_dtype() not in DTYPES:
        raise ValueError(f"{path}: {key} is {head.get_dtype()}; known: {', '.join(DTYPES)}")
      found[key] = Stored(f"{path}: {key}", tuple(head.get_shape()),
                          lambda file=file, key=key: file.get_tensor(key))
  listed = listed or {}
  lost = sorted(listed.keys() - found.keys())
  if lost:
    raise ValueError(f"{folder / listed[lost[0]]}: no tensor {lost[0]}, which {INDEX} puts there")
  return found


def load(folder: str | os.PathLike) -> tuple[Config, Params]:
  """(Config, parameters as float32 numpy arrays) of a folder with config.json and safetensors.

  Ignored are stored rotary frequencies, and a head that equals the embedding it is tied to. Raises
  FileNotFoundError for a missing file, ValueError for anything that would not be this decoder.
  """
  folder = pathlib.Path(folder)
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(f"{folder}: no config.json")
  config = read_config(folder / "config.json")
  with contextlib.ExitStack() as stack:
    stored = {name: tensor for name, tensor in _stored(folder, stack).items()
              if not name.endswith("rotary_emb.inv_freq")}
    head = stored.pop("lm_head.weight", None) if config.tied else None
    params = assemble(config, stored, str(folder))
    if head is not None and not np.array_equal(head.read().astype(np.float32), params["embed"]):
      raise ValueError(f"{head.where}: differs from the embedding, and config.json says "
                       "tie_word_embeddings")
  return config, params


def tensors(config: Config, params: Params, dtype: str = "float32"
            ) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
  """(name, shape, function that makes the array) of every tensor, in the files' layout.

  Raises ValueError for a tree that is not the config's, naming leaf, shape found and wanted.
  """
  wanted, found = _leaf_shapes(parameters.shapes(config)), _leaf_shapes(params)
  for leaf in sorted(wanted.keys() | found.keys()):
    if wanted.get(leaf) != found.get(leaf):
      raise ValueError(f"params {leaf}: shape {found.get(leaf)}, the config wants "
                       f"{wanted.get(leaf)}")
  params = jax.tree.map(np.asarray, params)

  def make(place: Place) -> np.ndarray:
    array = np.empty(place.shape, SAVED[dtype])
    place.arranged(array)[...] = place.view(params)  # it is a view: this writes into `array`
    return array

  for place in _places(config):
    yield place.tensor, place.shape, lambda place=place: make(place)


def _leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
  """The shapes of a tree by `layers.qkv` and so on."""
  return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(np.shape(leaf))
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _write(folder: pathlib.Path, config: Config, params: Params, dtype: str) -> None:
  """model.safetensors, or shards of at most SHARD_BYTES and their index."""
  shards: list[dict[str, Callable[[], np.ndarray]]] = []
  room, total = -1, 0  # bytes left in the last shard; bytes of all
  for name, shape, make in tensors(config, params, dtype):
    size = math.prod(shape) * np.dtype(SAVED[dtype]).itemsize
    if size > room:
      shards.append({})
      room = SHARD_BYTES
    shards[-1][name] = make
    room -= size
    total += size
  files = [SINGLE]
  if len(shards) > 1:
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for file, shard in zip(files, shards, strict=True):
    # arrays are made a shard at a time: a second copy of the whole model would not fit
    made = {name: make() for name, make in shard.items()}
    safetensors.save_file(made, folder / file, metadata={"format": "pt"})
  if len(shards) > 1:
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def save(folder: str | os.PathLike, config: Config, params: Params, *,
         tokenizer: Any = None, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
  """Writes a checkpoint that `transformers` opens; float32 comes back from `load` bit for bit.

  tokenizer: has `save(folder)`, pad_id and stop_ids. The folder appears whole or not at all. Raises
  FileExistsError when it holds files, ValueError for parameters that do not fit the config.
  """
  folder = pathlib.Path(folder)
  if dtype not in SAVED:
    raise ValueError(f"dtype={dtype!r}; choices: {', '.join(SAVED)}")
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(f"{folder}: exists already; a checkpoint is not written over")
  if tokenizer is not None:
    within((*tokenizer.stop_ids, tokenizer.pad_id), config.vocab_size, f"{folder}: its tokenizer")
  facts = describe(config, dtype, tokenizer)
  folder.parent.mkdir(parents=True, exist_ok=True)
  staged = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}")
  staged.mkdir()
  try:
    _write(staged, config, params, dtype)
    if tokenizer is not None:
      tokenizer.save(staged)
    write_json(staged / "config.json", facts)
    os.replace(staged, folder)
  finally:
    shutil.rmtree(staged, ignore_errors=True)
