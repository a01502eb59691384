"""The chain of thought as a variable: the same model with less time to think.

Outputs are sampled once, as the model likes. For a budget of k tokens, those whose
thoughts end in time stay as they are; the others are cut after k tokens of thoughts,
the answer is opened in their place, and the model goes on from there. So all budgets
share their samples: what differs between two of them is the cut alone, and a budget
that no output reaches changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import statistics, tasks
from r1jax.rewards.pool import RewardPool
from r1jax.runtime import compilation
from r1jax.runtime.keys import named_key
from r1jax.sampling import generate
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.place import put_batch
from r1jax.stages import evaluation
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.rollout import Rollout, Sampler
from r1jax.tasks import Problem
from r1jax.text.tokenizer import pad_left

OPENING = ' <think>'  # as in the outputs that a model learns from
CLOSING = '</think>\n<answer>'
Budget = int | None  # tokens of thoughts; None is as many as the model likes


@dataclasses.dataclass(frozen=True)
class Answers:
  """Outputs of P problems, G each, some with their thoughts cut."""

  texts: list[list[str]]  # P lists of G
  thoughts: np.ndarray  # int [P, G], tokens between the tags
  cut: np.ndarray  # bool [P, G], whether the thoughts were cut


@dataclasses.dataclass(frozen=True)
class BudgetForcer:
  """Ends thoughts and opens the answer; one compiled program for all budgets."""

  sampler: Sampler
  largest: int  # budget, tokens; what is read before an answer is padded to its width
  answer_length: int = 32  # tokens of an answer whose thoughts were cut, with its end

  def __post_init__(self) -> None:
    if self.largest < 0:
      raise ValueError(f'budgets: expected 0 tokens or more, got {self.largest}')
    if self.answer_length < 1:
      raise ValueError(f'answer_length: expected 1 or more, got {self.answer_length}')

  @functools.cached_property
  def forced(self) -> tuple[list[int], list[int]]:
    """The tokens that are put before and after thoughts."""
    encode = self.sampler.policy.tokenizer.encode
    return encode(OPENING), encode(CLOSING)

  @property
  def positions(self) -> int:
    """How many positions the longest prompt, thoughts and answer take."""
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
    """Where the thoughts of outputs begin, and how many tokens they have, [P, G].

    They begin after the first `<think>`, or where the output does if it has none, and
    go on to the first `</think>` after that, or to the end of the output.
    """
    (opens,), (closes,) = map(
      self.sampler.policy.tokenizer.encode, ('<think>', '</think>')
    )
    place = np.arange(outputs.tokens.shape[-1])
    tokens, lengths = outputs.tokens, outputs.lengths
    # An output's end is no thought.
    end = np.where(outputs.cut_off, lengths, lengths - 1)[..., None]
    there = place < end
    starts = (tokens == opens) & there
    first = np.where(starts.any(-1), starts.argmax(-1) + 1, 0)
    stops = ((tokens == closes) & (place >= first[..., None])) | ~there
    last = np.where(stops.any(-1), stops.argmax(-1), tokens.shape[-1])
    return first, last - first

  def __call__(
    self,
    params: Any,
    key: jax.Array,
    outputs: Rollout,
    *,
    budget: Budget,
    draw: SamplingConfig,
  ) -> Answers:
    """Returns the outputs with no more than `budget` tokens of thoughts each.

    Every row draws from a key of its own, the same at each budget.

    Raises:
      ValueError: for a budget above `largest`.
    """
    first, thoughts = self.thoughts(outputs)
    if budget is not None and not 0 <= budget <= self.largest:
      raise ValueError(f'budget: expected 0 to {self.largest} tokens, got {budget}')
    cut = np.zeros(thoughts.shape, bool) if budget is None else thoughts > budget
    texts = [list(group) for group in outputs.texts]
    chosen = np.argwhere(cut)
    size = cut.size // cut.shape[1]  # P rows at a time, so that devices divide them
    opening, closing = self.forced
    for begin in range(0, len(chosen), size):
      rows = chosen[begin : begin + size].tolist()
      said = [
        [*opening, *outputs.tokens[p, g, first[p, g] :][:budget].tolist(), *closing]
        for p, g in rows
      ]
      asked = [outputs.prompts[p][outputs.prompt_mask[p]].tolist() for p, _ in rows]
      ids = [p * cut.shape[1] + g for p, g in rows]
      before = [[*a, *b] for a, b in zip(asked, said, strict=True)]
      answers = self._go_on(params, key, before, ids, size, draw)
      for (p, g), tokens, answer in zip(rows, said, answers, strict=True):
        texts[p][g] = self.sampler.policy.tokenizer.decode([*tokens, *answer])
    return Answers(texts, np.where(cut, budget or 0, thoughts), cut)

  def _go_on(
    self,
    params: Any,
    key: jax.Array,
    before: list[list[int]],
    ids: list[int],
    size: int,
    draw: SamplingConfig,
  ) -> list[list[int]]:
    """What follows these tokens, to its end; `size` rows, of which some are spare."""
    spare = size - len(before)
    tokens, mask = pad_left(
      before + [before[-1]] * spare,
      self.positions - self.answer_length,
      self.sampler.policy.tokenizer.pad_id,
    )
    numbers = np.array(ids + [ids[-1]] * spare)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    said = self._sample(
      params,
      *put_batch(self.sampler.mesh, (keys, tokens, mask)),
      config=dataclasses.replace(draw, temperature=1.0),
      temperature=np.float32(draw.temperature),
    )
    answers, lengths = jax.device_get((said.tokens[:, 0], said.mask[:, 0].sum(-1)))
    found = zip(answers, lengths, strict=True)
    return [row[:n].tolist() for row, n in found][: len(before)]


def answer(
  params: Any,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  forcer: BudgetForcer,
  budgets: Sequence[Budget],
  group_size: int,
  max_length: int,
  draw: SamplingConfig,
) -> list[Answers]:
  """Returns G answers to each problem at each budget; at None uncut.

  `max_length` is that of an output whose thoughts are not cut.
  """
  outputs = forcer.sampler.sample(
    params, key, problems, group_size=group_size, max_length=max_length, draw=draw
  )
  after = named_key(key, 'after thoughts')
  return [forcer(params, after, outputs, budget=n, draw=draw) for n in budgets]


def measure(
  params: Any,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  forcer: BudgetForcer,
  budgets: Sequence[int],
  pool: RewardPool,
  config: EvalConfig,
  max_length: int,
  confidence: float = 0.95,
) -> list[dict[str, Any]]:
  """Returns a row for each budget, and a last one for thoughts as the model likes.

  A row holds pass@1, by task too, and the tokens of thoughts, with 95 % intervals that
  are bootstrapped over problems (see `evaluate`); `right` by problem; and
  `versus_free`, the difference in pass@1 to the last row, paired by problem, whose
  interval has the `confidence` given. All of it is about this one model. The pool's
  first reward is the accuracy.

  Raises:
    ValueError: for problems that are no multiple of `config.prompts_per_batch`.
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
    asked = [problem for problem in chunk for _ in range(samples)]
    texts = [[text for group in said.texts for text in group] for said in answers]
    # Scored while the next ones are sampled.
    pending.append([pool.submit(asked, said) for said in texts])
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
) -> dict[str, Any]:
  right_PG, free_PG = (x.reshape(len(problems), -1) for x in (right, free))
  thoughts_PG = np.concatenate([part.thoughts for part in answers])
  groups = [tasks.group(problem) for problem in problems]
  versus = statistics.paired(free_PG, right_PG, 0, confidence, groups)
  return {
    'budget': budget,
    'problems': len(problems),
    'k': right_PG.shape[1],
    'pass_at_1': statistics.bootstrap(right_PG, seed=0, groups=groups)._asdict(),
    'tasks': evaluation.by_task(right_PG, problems),
    'thoughts': statistics.bootstrap(thoughts_PG, seed=0, groups=groups)._asdict(),
    'cut': float(np.concatenate([part.cut for part in answers]).mean()),
    'right': right_PG.sum(1).astype(int).tolist(),
    'versus_free': {**versus.difference._asdict(), 'p': versus.p},
  }
