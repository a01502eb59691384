"""How fast a chat is: time to load a model, to the first token, tokens a second.

  python -m scripts.chat_speed ~/models/Qwen… [--dtype bfloat16] [--int8 True]

Prints a line of JSON. The options are those of `scripts.chat`, whose code it runs, one
question several times: the first answer compiles, or finds compiled programs on disk,
and the others are measured. At one row each token reads all weights, so the line also
has the bytes of weights a token, and their share of the rate at which this machine
reads memory, measured in the same process.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tyro

from r1jax.runtime import cli, compilation, memory
from r1jax.runtime.errors import user_errors
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import chat
from r1jax.stages.chat import ChatSession

QUESTION = 'Write a long story about a lighthouse keeper and a whale.'


@dataclasses.dataclass(frozen=True)
class ChatSpeed:
  """The model, as for `scripts.chat`, and what is measured."""

  # Work directory of a finished stage, or folder of a Hugging Face checkpoint
  path: tyro.conf.Positional[str] = ''
  dtype: Literal['float32', 'bfloat16', 'auto'] = 'auto'  # as for `scripts.chat`
  int8: bool = False  # as for `scripts.chat`
  tokens: int = 64  # of an answer
  answers: int = 5  # that are measured; medians are printed
  max_length: int = 2048  # tokens for which there is room, as for `scripts.chat`
  draw: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95)

  def __post_init__(self) -> None:
    if not 2 <= self.tokens <= self.max_length:
      raise ValueError(
        f'tokens: expected 2 to {self.max_length} (max_length), got {self.tokens}'
      )
    if self.answers < 1:
      raise ValueError(f'answers: expected 1 or more, got {self.answers}')


def measure(config: ChatSpeed) -> dict[str, Any]:
  """Returns the measurements by name; seconds, unless the name says otherwise."""
  if not config.path:
    raise ValueError('path: expected a stage or the folder of a checkpoint, got none')
  compilation.keep_on_disk()
  memory.keep_large_blocks()
  began = time.perf_counter()
  session = chat.open_session(
    config.path, None, config.draw, dtype=config.dtype, int8=config.int8
  )
  jax.block_until_ready(session.decode_params)
  load = time.perf_counter() - began
  _, ids = session.prompt([{'role': 'user', 'content': QUESTION}])
  cold, _ = _answer(session, ids, config)
  answers = [_answer(session, ids, config) for _ in range(config.answers)]
  rate = statistics.median(rate for _, rate in answers)
  read = bytes_a_token(session)
  bandwidth = read_bandwidth()
  return {
    'load': load,
    'prompt_tokens': len(ids),
    'first_token_cold': cold,
    'first_token': statistics.median(first for first, _ in answers),
    'tokens_per_second': rate,
    'slowest': min(rate for _, rate in answers),
    'fastest': max(rate for _, rate in answers),
    'mb_per_token': read / 1e6,
    'read_gb_per_second': bandwidth / 1e9,
    'share_of_read': read * rate / bandwidth,
  }


def _answer(
  session: ChatSession, ids: list[int], config: ChatSpeed
) -> tuple[float, float]:
  """Returns the seconds to the first token, and tokens a second after it."""
  tokens = session.tokens(ids, jax.random.key(0), config.max_length)
  times = [time.perf_counter()]
  times += [time.perf_counter() for _ in itertools.islice(tokens, config.tokens)]
  if len(times) < 3:
    raise ValueError('path: expected a model that answers with 2 tokens or more')
  return times[1] - times[0], (len(times) - 2) / (times[-1] - times[1])


def bytes_a_token(session: ChatSession) -> int:
  """Returns the bytes of weights that a token reads; no keys and values."""
  params = session.decode_params
  whole = sum(x.nbytes for x in jax.tree.leaves(params))
  tied = session.policy.config.tied and params.head is None
  return whole if tied else whole - params.outside['embedding'].nbytes


def read_bandwidth() -> float:
  """Returns the bytes a second that all cores read together: the median of nine."""
  parts = np.array_split(np.ones(64 * 2**20, np.float32), os.cpu_count() or 1)
  with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
    # numpy's product with itself reads a part once, faster than any other reduction.
    seconds = _seconds(lambda: list(threads.map(lambda x: x @ x, parts)), 9)
  return sum(part.nbytes for part in parts) / seconds


def _seconds(call: Callable[[], Any], times: int) -> float:
  call()
  taken = []
  for _ in range(times):
    began = time.perf_counter()
    call()
    taken.append(time.perf_counter() - began)
  return statistics.median(taken)


if __name__ == '__main__':
  with user_errors():
    print(json.dumps(measure(cli.parse(ChatSpeed()))))
