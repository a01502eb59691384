"""Thoughts cut at a budget, with a small random model that often says tags."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import thinking as experiment
from r1jax.evaluation import budget_forcing
from r1jax.evaluation.budget_forcing import BudgetForcer
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.model.config import ModelConfig
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Rollout, Sampler
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_boxed
from r1jax.tasks import Problem
from r1jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(['User: make 5 from 2 3 Assistant: <think>'] * 9, 270)
CONFIG = ModelConfig(d_model=16, layers=1, heads=2, kv_heads=1, head_dim=8, d_ff=16)
TRUTHS: dict[str, dict[str, object]] = {
  'countdown': {'numbers': [2, 3]},
  'gsm8k': {},
}
PROBLEMS = [
  Problem(
    str(n), list(TRUTHS)[n % 2], f'make {n} from 2 3', list(TRUTHS.values())[n % 2]
  )
  for n in range(4)
]
GROUP, LENGTH = 4, 24
LIKELY = '<think></think>ma3'
traced: list[tuple[int, ...]] = []  # shapes of the hidden states that logits saw


def logit_bias() -> np.ndarray:
  """Tags, an end and some characters are likely, other tokens are rare."""
  bias = np.full(TOKENIZER.vocab_size, -9.0, np.float32)
  bias[TOKENIZER.encode(LIKELY)] = 0.0
  bias[TOKENIZER.eos_id] = -0.5
  return bias


class BiasedPolicy(Policy):
  """A policy with `logit_bias` added to its logits."""

  @functools.cached_property
  def functions(self) -> DecoderFns:
    functions = super().functions
    bias = logit_bias()

    def biased(params, hidden):
      traced.append(hidden.shape)
      return functions.logits(params, hidden) + jnp.broadcast_to(
        bias, (*hidden.shape[:-1], len(bias))
      )

    return functions._replace(logits=biased)


POLICY = BiasedPolicy(CONFIG, TOKENIZER, 'plain')
MESH = make_mesh(jax.devices()[:1])


@pytest.fixture(scope='module')
def forcer():
  return BudgetForcer(Sampler(POLICY, 30, MESH), largest=LENGTH, answer_length=6)


@pytest.fixture(scope='module')
def params():
  return put_boxed(MESH, POLICY.boxed(jax.random.key(0)))


def answers(forcer, params, budgets, **draw):
  return budget_forcing.answer(
    params,
    jax.random.key(1),
    PROBLEMS,
    forcer=forcer,
    budgets=budgets,
    group_size=GROUP,
    max_length=LENGTH,
    draw=SamplingConfig(**draw),
  )


def uncut(forcer, params, **draw):
  return forcer.sampler.sample(
    params,
    jax.random.key(1),
    PROBLEMS,
    group_size=GROUP,
    max_length=LENGTH,
    draw=SamplingConfig(**draw),
  )


def thoughts_of(rollout, p, g):
  """The tokens of an output's thoughts, found one by one."""
  opens, closes = TOKENIZER.encode('<think></think>')
  ids = rollout.tokens[p, g, : rollout.lengths[p, g]].tolist()
  if ids[-1] == TOKENIZER.eos_id:
    ids.pop()
  if opens in ids:
    ids = ids[ids.index(opens) + 1 :]
  return ids[: ids.index(closes)] if closes in ids else ids


def test_without_a_budget_outputs_are_those_of_the_sampler(forcer, params):
  rollout = uncut(forcer, params)
  free, beyond = answers(forcer, params, [None, LENGTH])
  for said in (free, beyond):
    assert said.texts == rollout.texts
    assert not said.cut.any()
    for p, g in np.ndindex(4, GROUP):
      assert said.thoughts[p, g] == len(thoughts_of(rollout, p, g))
  assert len({t for group in free.texts for t in group}) > 8  # not all the same


def test_only_thoughts_beyond_the_budget_are_cut(forcer, params):
  rollout, budgets = uncut(forcer, params), (0, 2, 5)
  counts = []
  for budget, said in zip(budgets, answers(forcer, params, budgets), strict=True):
    for p, g in np.ndindex(4, GROUP):
      ids = thoughts_of(rollout, p, g)
      assert said.cut[p, g] == (len(ids) > budget)
      assert said.thoughts[p, g] == min(len(ids), budget)
      if len(ids) > budget:
        begun = f' <think>{TOKENIZER.decode(ids[:budget])}</think>\n<answer>'
        assert said.texts[p][g].startswith(begun)
      else:
        assert said.texts[p][g] == rollout.texts[p][g]
    counts.append(said.cut.sum())
  # Some of each, and more rows than the four that are answered at a time.
  assert GROUP * 4 > counts[0] > counts[1] > counts[2] > 0
  assert counts[0] > 4


def test_the_answer_continues_prompt_and_cut_thoughts(forcer, params):
  # Temperature 0: what follows is the most likely token each time.
  rollout = uncut(forcer, params)
  greedy = SamplingConfig(temperature=0.0)
  said = forcer(params, jax.random.key(2), rollout, budget=3, draw=greedy)
  forward, logits, *_ = POLICY.functions

  @jax.jit
  def most_likely(tokens, length):
    place = jnp.arange(tokens.shape[1])[None]
    hidden, _ = forward(params, tokens, place, jnp.ones_like(tokens))
    return jnp.argmax(logits(params, hidden[:, length - 1])[0])

  for p, g in np.argwhere(said.cut)[:5].tolist():
    prompt = TOKENIZER.encode(f'User: {PROBLEMS[p].question}\nAssistant:')
    ids = [
      *prompt,
      *TOKENIZER.encode(' <think>'),
      *thoughts_of(rollout, p, g)[:3],
      *TOKENIZER.encode('</think>\n<answer>'),
    ]
    for _ in range(6):
      padded = np.array([ids + [0] * (64 - len(ids))])
      ids.append(int(most_likely(padded, len(ids))))
      if ids[-1] == TOKENIZER.eos_id:
        break
    assert said.texts[p][g] == TOKENIZER.decode(ids[len(prompt) :])


def test_an_answer_does_not_depend_on_other_rows(forcer, params):
  rollout = uncut(forcer, params)
  draw = SamplingConfig()
  whole = forcer(params, jax.random.key(2), rollout, budget=0, draw=draw)
  # Without the first problem's outputs all others move to other batches.
  ended = rollout.tokens.copy()
  ended[0, :, 0] = TOKENIZER.eos_id
  lengths = rollout.lengths.copy()
  lengths[0] = 1
  fewer = dataclasses.replace(
    rollout, tokens=ended, lengths=lengths, cut_off=rollout.cut_off & (lengths > 1)
  )
  part = forcer(params, jax.random.key(2), fewer, budget=0, draw=draw)
  assert part.texts[1:] == whole.texts[1:]
  assert not part.cut[0].any()


def test_all_budgets_share_one_program(forcer, params):
  answers(forcer, params, [1])
  before = len(traced)
  answers(forcer, params, [0, 4, 7, None], temperature=0.7)
  assert len(traced) == before


def test_thoughts_are_found_between_the_tags():
  opens, closes = TOKENIZER.encode('<think></think>')
  a, eos = TOKENIZER.encode('a')[0], TOKENIZER.eos_id
  rows = [
    ([a, opens, a, a, closes, a, eos], 2, 2),
    ([opens, closes, a, closes, eos, 0, 0], 1, 0),
    ([opens, a, a, eos, 0, 0, 0], 1, 2),  # never closed
    ([opens, a, a, a, a, a, a], 1, 6),  # cut off
    ([a, a, closes, eos, 0, 0, 0], 0, 2),  # never opened
    ([closes, opens, a, closes, a, a, eos], 2, 1),  # closed before it is opened
    ([eos, 0, 0, 0, 0, 0, 0], 0, 0),
  ]
  tokens = np.array([[row for row, _, _ in rows]])
  ended = tokens == eos
  lengths = np.where(ended.any(-1), ended.argmax(-1) + 1, 7)
  rollout = Rollout(
    rows=np.arange(1),
    own=np.ones(1, bool),
    prompts=tokens[0],
    prompt_mask=tokens[0] > 0,
    tokens=tokens,
    logp=np.zeros(tokens.shape),
    lengths=lengths,
    all_lengths=lengths,
    cut_off=~ended.any(-1),
    texts=[],
    prompt_texts=[],
    device_seconds=0.0,
    seconds=0.0,
  )
  first, count = BudgetForcer(Sampler(POLICY, 30, MESH), 0).thoughts(rollout)
  assert first[0].tolist() == [first for _, first, _ in rows]
  assert count[0].tolist() == [count for _, _, count in rows]


def test_budgets_out_of_range_are_refused(forcer, params):
  with pytest.raises(ValueError, match='budgets: expected 0 tokens or more, got -1'):
    BudgetForcer(forcer.sampler, -1)
  with pytest.raises(ValueError, match='answer_length: expected 1 or more, got 0'):
    BudgetForcer(forcer.sampler, 4, 0)
  with pytest.raises(
    ValueError, match=f'budget: expected 0 to {LENGTH} tokens, got 25'
  ):
    answers(forcer, params, [25])


class Rewarder:
  """Stands for a reward pool: right are texts with an even number of characters."""

  def submit(self, problems, texts):
    assert len(problems) == len(texts)
    values = np.array([[len(text) % 2 == 0] for text in texts], np.float32)
    return types.SimpleNamespace(result=lambda: types.SimpleNamespace(values=values))


def test_rows_are_means_over_problems_compared_with_no_budget(forcer, params):
  config = EvalConfig(problems=8, samples=GROUP, prompts_per_batch=4)
  pool: Any = Rewarder()
  key = jax.random.key(3)
  rows = budget_forcing.measure(
    params,
    key,
    PROBLEMS * 2,
    forcer=forcer,
    budgets=[0, 3],
    pool=pool,
    config=config,
    max_length=LENGTH,
  )
  assert [row['budget'] for row in rows] == [0, 3, None]
  right = []
  for n, row in enumerate(rows):
    parts = [
      budget_forcing.answer(
        params,
        jax.random.fold_in(key, start),
        PROBLEMS,
        forcer=forcer,
        budgets=[0, 3, None],
        group_size=GROUP,
        max_length=LENGTH,
        draw=config.draw,
      )[n]
      for start in (0, 4)
    ]
    even_PG = np.array(
      [[len(t) % 2 == 0 for t in group] for part in parts for group in part.texts]
    )
    right.append(even_PG.sum(1))
    assert row['right'] == even_PG.sum(1).tolist()
    assert row['pass_at_1']['mean'] == pytest.approx(even_PG.mean())
    assert row['tasks']['countdown']['mean'] == pytest.approx(even_PG[::2].mean())
    assert row['tasks']['gsm8k']['mean'] == pytest.approx(even_PG[1::2].mean())
    thoughts = np.concatenate([part.thoughts for part in parts])
    assert row['thoughts']['mean'] == pytest.approx(thoughts.mean())
    assert row['cut'] == np.concatenate([part.cut for part in parts]).mean()
  for n, row in enumerate(rows):
    expected = (right[n] - right[2]).mean() / GROUP
    assert row['versus_free']['mean'] == pytest.approx(expected)
  assert rows[0]['thoughts']['mean'] == 0
  with pytest.raises(ValueError, match='expected a multiple of prompts_per_batch = 4'):
    budget_forcing.measure(
      params,
      key,
      PROBLEMS[:3],
      forcer=forcer,
      budgets=[0],
      pool=pool,
      config=config,
      max_length=LENGTH,
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'budgets': ()}, 'budgets: expected one or more'),
    ({'budgets': (4, -1)}, 'budgets: expected one or more'),
    ({'budgets': (4, 4)}, 'budgets: expected different numbers'),
    ({'answer_length': 0}, 'answer_length: expected 1 or more, got 0'),
    (
      {'evals': EvalConfig(problems=30)},
      'evals.problems: expected a multiple of evals.prompts_per_batch = 16',
    ),
  ],
)
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    experiment.Thinking(**fields)
