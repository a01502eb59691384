"""Budget forcing: measures a model whose thoughts are truncated after k tokens.

Outputs are sampled once without a budget. For a budget of k tokens, outputs with at
most k tokens of thoughts stay unchanged. The others are truncated after k tokens of
thoughts, the answer is opened, and the model continues from there. So all budgets share
their samples and differ by the truncation alone; a budget that no output reaches
changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from r1jax import statistics, tasks
from r1jax.evaluation.evaluate import EvalConfig, by_task
from r1jax.plain import JsonObject
from r1jax.rewards.pool import RewardPool
from r1jax.rollout.sampler import Rollout, Sampler
from r1jax.runtime import compilation
from r1jax.runtime.keys import named_key
from r1jax.sampling import generate
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.place import put_batch
from r1jax.tasks import Problem
from r1jax.text.tokenizer import pad_left

OPENING = ' <think>'  # as in the training data
CLOSING = '</think>\n<answer>'
Budget = int | None  # tokens of thoughts; None is no limit


def check_budgets(budgets: Sequence[int]) -> None:
  """Raises ValueError unless these are different numbers of 0 or more tokens."""
  if not budgets or min(budgets) < 0:
    raise ValueError(
      f'budgets: expected one or more numbers of 0 or more, got {budgets}'
    )
  if len(set(budgets)) < len(budgets):
    raise ValueError(f'budgets: expected different numbers, got {budgets}')


@dataclasses.dataclass(frozen=True)
class Answers:
  """G outputs for each of P problems, some with truncated thoughts."""

  texts: list[list[str]]  # P lists of G
  thoughts: np.ndarray  # int [P, G], tokens between the tags
  cut: np.ndarray  # bool [P, G], whether the thoughts were truncated


@dataclasses.dataclass(frozen=True)
class BudgetForcer:
  """Truncates thoughts and samples the answer; one compiled program for all budgets."""

  sampler: Sampler
  largest: int  # the largest budget, tokens; prompts and thoughts are padded to it
  answer_length: int = 32  # tokens of an answer after truncated thoughts, with its end

  def __post_init__(self) -> None:
    if self.largest < 0:
      raise ValueError(f'budgets: expected 0 tokens or more, got {self.largest}')
    if self.answer_length < 1:
      raise ValueError(f'answer_length: expected 1 or more, got {self.answer_length}')

  def check(self, max_positions: int) -> None:
    """Raises ValueError if the largest budget exceeds the model's positions."""
    if self.positions > max_positions:
      most = max_positions - (self.positions - self.largest)
      raise ValueError(
        f'budgets: expected at most {most} tokens, as the model was trained on rows of '
        f'{max_positions}, got {self.largest}; lower it, or answer_length'
      )

  @functools.cached_property
  def forced(self) -> tuple[list[int], list[int]]:
    """Token ids placed before and after truncated thoughts."""
    encode = self.sampler.policy.tokenizer.encode
    return encode(OPENING), encode(CLOSING)

  @property
  def positions(self) -> int:
    """Positions that the longest prompt, thoughts and answer take."""
    fixed = sum(map(len, self.forced)) + self.answer_length
    return self.sampler.max_prompt_length + self.largest + fixed

  @functools.cached_property
  def _sample(self) -> Callable[..., generate.Completions]:
    function = functools.partial(
      generate.sample,
      model=self.sampler.policy.functions,
      stop_ids=self.sampler.policy.tokenizer.stop_ids,
      compact=self.sampler.mesh.size == 1,
      group_size=1,
      max_length=self.answer_length,
    )
    return jax.jit(
      function, static_argnames='config', compiler_options=compilation.options()
    )

  def thoughts(self, outputs: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the thoughts of outputs begin, and their numbers of tokens, [P, G].

    They begin after the first `<think>`, or at the start of an output without one. They
    end at the next `</think>`, or at the end of the output.
    """
    (opens,), (closes,) = map(
      self.sampler.policy.tokenizer.encode, ('<think>', '</think>')
    )
    place = np.arange(outputs.tokens.shape[-1])
    tokens, lengths = outputs.tokens, outputs.lengths
    # The stop token is not part of the thoughts.
    end = np.where(outputs.cut_off, lengths, lengths - 1)[..., None]
    there = place < end
    starts = (tokens == opens) & there
    first = np.where(starts.any(-1), starts.argmax(-1) + 1, 0)
    stops = ((tokens == closes) & (place >= first[..., None])) | ~there
    last = np.where(stops.any(-1), stops.argmax(-1), tokens.shape[-1])
    return first, last - first

  def __call__(
    self,
    params: optax.Params,
    key: jax.Array,
    outputs: Rollout,
    *,
    budget: Budget,
    draw: SamplingConfig,
  ) -> Answers:
    """Returns the outputs, each with at most `budget` tokens of thoughts.

    Every output has its own key, the same for all budgets.

    Raises:
      ValueError: the budget is above `largest`.
    """
    first, thoughts = self.thoughts(outputs)
    if budget is not None and not 0 <= budget <= self.largest:
      raise ValueError(f'budget: expected 0 to {self.largest} tokens, got {budget}')
    cut = np.zeros(thoughts.shape, bool) if budget is None else thoughts > budget
    texts = [list(group) for group in outputs.texts]
    chosen = np.argwhere(cut)
    size = cut.size // cut.shape[1]  # P rows at a time, a multiple of the devices
    opening, closing = self.forced
    for begin in range(0, len(chosen), size):
      rows = chosen[begin : begin + size].tolist()
      begun = [
        [*opening, *outputs.tokens[p, g, first[p, g] :][:budget].tolist(), *closing]
        for p, g in rows
      ]
      prompts = [outputs.prompts[p][outputs.prompt_mask[p]].tolist() for p, _ in rows]
      ids = [p * cut.shape[1] + g for p, g in rows]
      prefixes = [[*a, *b] for a, b in zip(prompts, begun, strict=True)]
      answers = self._continue(params, key, prefixes, ids, size, draw)
      for (p, g), tokens, answer in zip(rows, begun, answers, strict=True):
        texts[p][g] = self.sampler.policy.tokenizer.decode([*tokens, *answer])
    return Answers(texts, np.where(cut, budget or 0, thoughts), cut)

  def _continue(
    self,
    params: optax.Params,
    key: jax.Array,
    prefixes: list[list[int]],
    ids: list[int],
    size: int,
    draw: SamplingConfig,
  ) -> list[list[int]]:
    """Samples continuations of at most `size` prefixes, which are padded to `size`."""
    spare = size - len(prefixes)
    tokens, mask = pad_left(
      prefixes + [prefixes[-1]] * spare,
      self.positions - self.answer_length,
      self.sampler.policy.tokenizer.pad_id,
    )
    numbers = np.array(ids + [ids[-1]] * spare)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    sampled = self._sample(
      params,
      *put_batch(self.sampler.mesh, (keys, tokens, mask)),
      config=dataclasses.replace(draw, temperature=1.0),
      temperature=np.float32(draw.temperature),
    )
    answers, lengths = jax.device_get(
      (sampled.tokens[:, 0], sampled.mask[:, 0].sum(-1))
    )
    found = zip(answers, lengths, strict=True)
    return [row[:n].tolist() for row, n in found][: len(prefixes)]


def answer(
  params: optax.Params,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  forcer: BudgetForcer,
  budgets: Sequence[Budget],
  group_size: int,
  max_length: int,
  draw: SamplingConfig,
) -> list[Answers]:
  """Returns G outputs for each problem, at each budget.

  `max_length` limits outputs whose thoughts are not truncated.
  """
  outputs = forcer.sampler.sample(
    params, key, problems, group_size=group_size, max_length=max_length, draw=draw
  )
  after = named_key(key, 'after thoughts')
  return [forcer(params, after, outputs, budget=n, draw=draw) for n in budgets]


def measure(
  params: optax.Params,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  forcer: BudgetForcer,
  budgets: Sequence[int],
  pool: RewardPool,
  config: EvalConfig,
  max_length: int,
  confidence: float = 0.95,
) -> list[JsonObject]:
  """Returns a row for each budget, and a last one without a budget.

  A row holds pass@1 in total and by task, and the tokens of thoughts, with 95 %
  intervals bootstrapped over problems (see `evaluate`); `right`, the right outputs of
  each problem; and `versus_free`, the difference in pass@1 to the last row, paired by
  problem, with an interval of the given `confidence`. All of it is about this one
  model. The pool's first reward must be the accuracy.

  Raises:
    ValueError: the number of problems is no multiple of `config.prompts_per_batch`.
  """
  size, samples = config.prompts_per_batch, config.samples
  if not problems or len(problems) % size:
    raise ValueError(
      f'problems: expected a multiple of prompts_per_batch = {size}, got '
      f'{len(problems)}'
    )
  found, pending = [], []
  for start in range(0, len(problems), size):
    chunk = problems[start : start + size]
    answers = answer(
      params,
      jax.random.fold_in(key, start),
      chunk,
      forcer=forcer,
      budgets=[*budgets, None],
      group_size=samples,
      max_length=max_length,
      draw=config.draw,
    )
    found.append(answers)
    repeated = [problem for problem in chunk for _ in range(samples)]
    texts = [[text for group in one.texts for text in group] for one in answers]
    # Scored while the next ones are sampled.
    pending.append([pool.submit(repeated, outputs) for outputs in texts])
  right = [
    np.concatenate([scores.result().values[:, 0] for scores in batches])
    for batches in zip(*pending, strict=True)
  ]
  return [
    _row(
      budget,
      problems,
      right[n],
      right[-1],
      [answers[n] for answers in found],
      confidence,
    )
    for n, budget in enumerate([*budgets, None])
  ]


def _row(
  budget: Budget,
  problems: Sequence[Problem],
  right: np.ndarray,
  free: np.ndarray,
  answers: Sequence[Answers],
  confidence: float,
) -> JsonObject:
  """Returns the row of a budget; see `measure`."""
  right_PG, free_PG = (x.reshape(len(problems), -1) for x in (right, free))
  thoughts_PG = np.concatenate([part.thoughts for part in answers])
  groups = [tasks.group(problem) for problem in problems]
  versus = statistics.paired(free_PG, right_PG, 0, confidence, groups)
  return {
    'budget': budget,
    'problems': len(problems),
    'k': right_PG.shape[1],
    'pass_at_1': statistics.bootstrap(right_PG, seed=0, groups=groups)._asdict(),
    'tasks': by_task(right_PG, problems),
    'thoughts': statistics.bootstrap(thoughts_PG, seed=0, groups=groups)._asdict(),
    'cut': float(np.concatenate([part.cut for part in answers]).mean()),
    'right': right_PG.sum(1).astype(int).tolist(),
    'versus_free': {**versus.difference._asdict(), 'p': versus.p},
  }
