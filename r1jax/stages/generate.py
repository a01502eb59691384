"""From problems to texts: renders prompts, samples on device, decodes."""

import concurrent.futures
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import drawing, sampling, text
from r1jax import mesh as mesh_lib
from r1jax.stages import compilation
from r1jax.tasks import Problem

_COMPILES = threading.Lock()
_LINUX = hasattr(os, 'sched_getaffinity')  # elsewhere all cores are taken for free


@dataclasses.dataclass(frozen=True)
class Outputs:
  """A group of outputs for each of P problems."""

  prompts: np.ndarray  # int32 [P, S], padded on the left
  prompt_mask: np.ndarray  # bool [P, S]
  tokens: np.ndarray  # int32 [P, G, T], 0 beyond an output's end
  logp: np.ndarray  # float32 [P, G, T], nats, under the policy that sampled
  lengths: np.ndarray  # int [P, G], tokens with the stop token
  cut_off: np.ndarray  # bool [P, G], no stop token within the limit
  texts: list[list[str]]  # P lists of G
  seconds: float  # from the first program's start to the last one's end


@dataclasses.dataclass(frozen=True)
class Generator:
  """A policy's voice: everything but its parameters."""

  model: sampling.Model
  tokenizer: text.Tokenizer
  template: str  # a name in text.TEMPLATES, or text.CHAT
  max_prompt_length: int  # S, tokens
  mesh: jax.sharding.Mesh  # where the parameters are learned
  layout: mesh_lib.Config = mesh_lib.Config()  # how samplers use these devices
  names: Any = None  # of the parameters' axes; needed for more than one device

  @functools.cached_property
  def where(self) -> jax.sharding.Mesh:
    """The devices as samplers use them."""
    return mesh_lib.sampler(self.mesh, self.layout)

  def take(self, params: Any) -> Any:
    """Returns the parameters as they lie for sampling; once a step, on the devices."""
    if self.mesh.size == 1 or self.names is None:
      return params
    return mesh_lib.put_like(self.where, params, self.names)

  @functools.cached_property
  def _sample(self) -> Callable[..., sampling.Completions]:
    function = functools.partial(
      sampling.sample,
      model=self.model,
      stop_ids=self.tokenizer.stop_ids,
      compact=self.where.size == 1,
    )
    static = ('config', 'group_size', 'max_length')
    return jax.jit(
      mesh_lib.bound(self.where, function),
      static_argnames=static,
      compiler_options=compilation.options(self.where),
    )

  def _parts(self, prompts: int) -> int:
    """Programs to run at once: one of the sampler's keeps one core of a CPU busy."""
    if self.where.size > 1 or jax.default_backend() != 'cpu':
      return 1
    cores = len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count() or 1
    return max(n for n in range(1, cores + 1) if prompts % n == 0)

  def prompt(self, problem: Problem) -> str:
    """The problem as the model sees it."""
    return self.tokenizer.prompt(self.template, problem.question)

  def encode(self, problems: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask [P, S]; ValueError for a prompt longer than S."""
    rows = [self.tokenizer.prompt_ids(self.template, p.question) for p in problems]
    return text.pad_left(rows, self.max_prompt_length, self.tokenizer.pad_id)

  def __call__(
    self,
    params: Any,
    key: jax.Array,
    problems: Sequence[Problem],
    *,
    group_size: int,
    max_length: int,
    draw: drawing.Config,
  ) -> Outputs:
    """Samples `group_size` outputs of each problem, in parts side by side on a CPU."""
    prompts, prompt_mask = self.encode(problems)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(problems)))
    sample = functools.partial(
      self._sample,
      self.take(params),
      # Another temperature is another number, not another program.
      config=dataclasses.replace(draw, temperature=1.0),
      group_size=group_size,
      max_length=max_length,
      temperature=np.float32(draw.temperature),
    )

    def part(rows: slice) -> sampling.Completions:
      arrays = (keys[rows], prompts[rows], prompt_mask[rows])
      with _COMPILES:  # once, and not once a thread; a call returns before it has run
        completions = sample(*mesh_lib.put_batch(self.where, arrays))
      return jax.device_get(completions)

    size = len(problems) // self._parts(len(problems))
    began = time.monotonic()
    slices = [slice(start, start + size) for start in range(0, len(problems), size)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
      parts = list(threads.map(part, slices))
    seconds = time.monotonic() - began
    said = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    tokens, lengths = said.tokens, said.mask.sum(-1)
    last = np.take_along_axis(tokens, lengths[..., None] - 1, axis=-1)[..., 0]
    flat = tokens.reshape(-1, max_length)
    rows = [row[:n] for row, n in zip(flat, lengths.reshape(-1), strict=True)]
    # An output begins with what its prompt has opened for it.
    opened = [text.opened(self.prompt(problem)) for problem in problems]
    texts = [
      opened[n // group_size] + said
      for n, said in enumerate(self.tokenizer.decode_batch(rows))
    ]
    groups = range(0, len(texts), group_size)
    return Outputs(
      prompts=prompts,
      prompt_mask=prompt_mask,
      tokens=tokens,
      logp=said.logp,
      lengths=lengths,
      cut_off=~np.isin(last, self.tokenizer.stop_ids),
      texts=[texts[start : start + group_size] for start in groups],
      seconds=seconds,
    )
