"""Samples rollouts: renders prompts, samples on the device, decodes texts."""

import concurrent.futures
import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from r1jax.rollout.policy import Policy
from r1jax.rollout.sample_program import SampleProgram
from r1jax.runtime import hosts
from r1jax.sampling import generate
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import REPLICATED, MeshConfig, local_shards, shard_owners
from r1jax.sharding.place import feed_rows, fetch_rows, put_batch
from r1jax.tasks import Problem
from r1jax.text import parsing
from r1jax.text.tokenizer import pad_left
from r1jax.trees import T

_COMPILES = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Rollout:
  """Outputs of this host: a group of G for each of P problems.

  With one host these are all outputs. Otherwise hosts may hold copies of the same ones;
  one of them owns an output.
  """

  rows: np.ndarray  # int [P], indices of the problems
  own: np.ndarray  # bool [P], whether this host owns the outputs
  prompts: np.ndarray  # int32 [P, S], padded on the left
  prompt_mask: np.ndarray  # bool [P, S]
  tokens: np.ndarray  # int32 [P, G, T], 0 beyond an output's end
  logp: np.ndarray  # float32 [P, G, T], nats, under the policy that sampled
  lengths: np.ndarray  # int [P, G], tokens with the stop token
  all_lengths: np.ndarray  # int [all, G], of the outputs of all hosts
  cut_off: np.ndarray  # bool [P, G], no stop token within the limit
  texts: list[list[str]]  # P lists of G
  prompt_texts: list[str]  # P
  device_seconds: float  # from the first program's start to the last one's end
  seconds: float  # with tokenizing


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples outputs of problems: renders prompts, samples on the device, decodes.

  Fields:
    policy: the model, its tokenizer and template.
    max_prompt_length: S, tokens.
    mesh: the learner's devices.
    layout: how the sampler uses these devices.
  """

  policy: Policy
  max_prompt_length: int
  mesh: jax.sharding.Mesh
  layout: MeshConfig = REPLICATED

  @functools.cached_property
  def program(self) -> SampleProgram:
    """The part that runs on the devices."""
    policy = self.policy
    return SampleProgram(
      policy.functions,
      policy.tokenizer.stop_ids,
      self.mesh,
      self.layout,
      policy.names,
    )

  def encode(self, problems: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and mask [P, S]; raises ValueError for a prompt above S."""
    tokenizer, template = self.policy.tokenizer, self.policy.template
    rows = [tokenizer.prompt_ids(template, p.question) for p in problems]
    return pad_left(rows, self.max_prompt_length, tokenizer.pad_id)

  def sample(
    self,
    params: optax.Params,
    key: jax.Array,
    problems: Sequence[Problem],
    *,
    group_size: int,
    max_length: int,
    draw: SamplingConfig,
    first: int = 0,
  ) -> Rollout:
    """Returns `group_size` outputs of each problem.

    Every host gets all problems, and encodes and decodes those of its devices.

    Args:
      params: of the policy.
      key: its child `first` + n is the key of problem n.
      problems: to answer.
      group_size: G.
      max_length: T, tokens.
      draw: how to sample a token.
      first: number of the first problem, if others were asked with this key.
    """
    began = time.monotonic()
    rows, own = local_rows(self.mesh, len(problems))
    mine = [problems[n] for n in rows]
    prompts, prompt_mask = self.encode(mine)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + rows)
    key_data = np.asarray(jax.random.key_data(keys))
    parts = self.program.parallel_parts(len(mine), params)
    sample = functools.partial(
      self.program.compiled,
      self.program.place(params),
      # The temperature is an argument, so that a new one compiles nothing.
      config=dataclasses.replace(draw, temperature=1.0),
      group_size=group_size,
      max_length=max_length,
      slots=self.program.slots(len(problems) * group_size // parts, parts),
      temperature=np.float32(draw.temperature),
    )

    def part(rows: slice) -> tuple[generate.Completions, np.ndarray]:
      arrays = (key_data[rows], prompts[rows], prompt_mask[rows])
      with _COMPILES:  # compiles once, not once per thread; the call is asynchronous
        placed = feed_rows(self.mesh, arrays)
        found, lengths = sample(*put_batch(self.program.sampling_mesh, placed))
      return fetch_rows(self.mesh, found), np.asarray(lengths)

    size = len(mine) // parts
    started = time.monotonic()
    slices = [slice(start, start + size) for start in range(0, len(mine), size)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
      found = list(threads.map(part, slices))
    device_seconds = time.monotonic() - started
    completions, all_lengths = jax.tree.map(lambda *x: np.concatenate(x), *found)
    tokens, lengths = completions.tokens, all_lengths[rows]
    last = np.take_along_axis(tokens, lengths[..., None] - 1, axis=-1)[..., 0]
    prompt_texts = [self.policy.prompt(problem.question) for problem in mine]
    return Rollout(
      rows=rows,
      own=own,
      prompts=prompts,
      prompt_mask=prompt_mask,
      tokens=tokens,
      logp=completions.logp,
      lengths=lengths,
      all_lengths=all_lengths,
      cut_off=~np.isin(last, self.policy.tokenizer.stop_ids),
      texts=self._texts(prompt_texts, tokens, lengths),
      prompt_texts=prompt_texts,
      device_seconds=device_seconds,
      seconds=time.monotonic() - began,
    )

  def _texts(
    self, prompts: Sequence[str], tokens: np.ndarray, lengths: np.ndarray
  ) -> list[list[str]]:
    """Returns the outputs' texts, P lists of G."""
    group_size, max_length = tokens.shape[1:]
    flat = tokens.reshape(-1, max_length)
    cut: list[Any] = [row[:n] for row, n in zip(flat, lengths.reshape(-1), strict=True)]
    # An output begins with the tag that its prompt has opened.
    opened = [parsing.opened(prompt) for prompt in prompts]
    texts = [
      opened[n // group_size] + text
      for n, text in enumerate(self.policy.tokenizer.decode_batch(cut))
    ]
    groups = range(0, len(texts), group_size)
    return [texts[start : start + group_size] for start in groups]


def of_all_hosts(outputs: Rollout, values: Sequence[T]) -> list[T]:
  """Returns the values of all hosts' problems in order, given those of this host."""
  own = [(n, x) for n, x, o in zip(outputs.rows, values, outputs.own, strict=True) if o]
  pairs = [pair for part in hosts.all_gather('outputs', own) for pair in part]
  return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def local_rows(mesh: jax.sharding.Mesh, problems: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the indices of this host's problems, and whether it owns each."""
  holders = shard_owners(mesh)
  rows = np.arange(problems).reshape(len(holders), -1)
  here = local_shards(mesh)
  own = [holders[n][0] == jax.process_index() for n in here]
  return rows[here].reshape(-1), np.repeat(own, rows.shape[1])
