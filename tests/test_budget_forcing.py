"""Thoughts cut at a budget, with a small random model that likes tags."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import thinking as experiment
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_boxed
from r1jax.stages import budget_forcing
from r1jax.stages.budget_forcing import BudgetForcer
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.rollout import Rollout, Sampler
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
LIKED = '<think></think>ma3'
traced: list[tuple[int, ...]] = []  # shapes of the hidden states that logits saw


def likes() -> np.ndarray:
  """What is added to logits: tags, an end and some signs come, other tokens hardly."""
  bias = np.full(TOKENIZER.vocab_size, -9.0, np.float32)
  bias[TOKENIZER.encode(LIKED)] = 0.0
  bias[TOKENIZER.eos_id] = -0.5
  return bias


def model() -> DecoderFns:
  forward, logits, decoding, both = decoder.functions(CONFIG, TOKENIZER.vocab_size)
  bias = likes()

  def biased(params, hidden):
    traced.append(hidden.shape)
    return logits(params, hidden) + jnp.broadcast_to(
      bias, (*hidden.shape[:-1], len(bias))
    )

  return DecoderFns(forward, biased, decoding, both)


@pytest.fixture(scope='module')
def closer():
  place = make_mesh(jax.devices()[:1])
  generator = Sampler(model(), TOKENIZER, 'plain', 30, place)
  return BudgetForcer(generator, largest=LENGTH, answer_length=6)


@pytest.fixture(scope='module')
def params():
  boxed = decoder.init(CONFIG, TOKENIZER.vocab_size, jax.random.key(0))
  return put_boxed(make_mesh(jax.devices()[:1]), boxed)


def answers(closer, params, budgets, **draw):
  return budget_forcing.answer(
    params,
    jax.random.key(1),
    PROBLEMS,
    closer=closer,
    budgets=budgets,
    group_size=GROUP,
    max_length=LENGTH,
    draw=SamplingConfig(**draw),
  )


def plain(closer, params, **draw):
  return closer.generator(
    params,
    jax.random.key(1),
    PROBLEMS,
    group_size=GROUP,
    max_length=LENGTH,
    draw=SamplingConfig(**draw),
  )


def thoughts_of(outputs, p, g):
  """The tokens of an output's thoughts, looked for one by one."""
  opens, closes = TOKENIZER.encode('<think></think>')
  ids = outputs.tokens[p, g, : outputs.lengths[p, g]].tolist()
  if ids[-1] == TOKENIZER.eos_id:
    ids.pop()
  if opens in ids:
    ids = ids[ids.index(opens) + 1 :]
  return ids[: ids.index(closes)] if closes in ids else ids


def test_thoughts_as_the_model_likes_are_the_generators_outputs(closer, params):
  outputs = plain(closer, params)
  free, beyond = answers(closer, params, [None, LENGTH])
  for said in (free, beyond):
    assert said.texts == outputs.texts
    assert not said.cut.any()
    for p, g in np.ndindex(4, GROUP):
      assert said.thoughts[p, g] == len(thoughts_of(outputs, p, g))
  assert len({t for group in free.texts for t in group}) > 8  # not all the same


def test_longer_thoughts_are_cut_and_no_others_touched(closer, params):
  outputs, budgets = plain(closer, params), (0, 2, 5)
  counts = []
  for budget, said in zip(budgets, answers(closer, params, budgets), strict=True):
    for p, g in np.ndindex(4, GROUP):
      ids = thoughts_of(outputs, p, g)
      assert said.cut[p, g] == (len(ids) > budget)
      assert said.thoughts[p, g] == min(len(ids), budget)
      if len(ids) > budget:
        begun = f' <think>{TOKENIZER.decode(ids[:budget])}</think>\n<answer>'
        assert said.texts[p][g].startswith(begun)
      else:
        assert said.texts[p][g] == outputs.texts[p][g]
    counts.append(said.cut.sum())
  # Some of each, and more rows than the four that are answered at a time.
  assert GROUP * 4 > counts[0] > counts[1] > counts[2] > 0
  assert counts[0] > 4


def test_the_answer_follows_from_prompt_and_cut_thoughts(closer, params):
  # Temperature 0: what follows is the most likely token each time.
  outputs = plain(closer, params)
  greedy = SamplingConfig(temperature=0.0)
  said = closer(params, jax.random.key(2), outputs, budget=3, draw=greedy)
  forward, logits, *_ = closer.generator.model

  @jax.jit
  def likeliest(tokens, length):
    place = jnp.arange(tokens.shape[1])[None]
    hidden, _ = forward(params, tokens, place, jnp.ones_like(tokens))
    return jnp.argmax(logits(params, hidden[:, length - 1])[0])

  for p, g in np.argwhere(said.cut)[:5].tolist():
    prompt = TOKENIZER.encode(f'User: {PROBLEMS[p].question}\nAssistant:')
    ids = [
      *prompt,
      *TOKENIZER.encode(' <think>'),
      *thoughts_of(outputs, p, g)[:3],
      *TOKENIZER.encode('</think>\n<answer>'),
    ]
    for _ in range(6):
      padded = np.array([ids + [0] * (64 - len(ids))])
      ids.append(int(likeliest(padded, len(ids))))
      if ids[-1] == TOKENIZER.eos_id:
        break
    assert said.texts[p][g] == TOKENIZER.decode(ids[len(prompt) :])


def test_a_rows_answer_does_not_depend_on_the_others(closer, params):
  outputs = plain(closer, params)
  draw = SamplingConfig()
  whole = closer(params, jax.random.key(2), outputs, budget=0, draw=draw)
  # Without the first problem's outputs all others move to other batches.
  ended = outputs.tokens.copy()
  ended[0, :, 0] = TOKENIZER.eos_id
  lengths = outputs.lengths.copy()
  lengths[0] = 1
  fewer = dataclasses.replace(
    outputs, tokens=ended, lengths=lengths, cut_off=outputs.cut_off & (lengths > 1)
  )
  part = closer(params, jax.random.key(2), fewer, budget=0, draw=draw)
  assert part.texts[1:] == whole.texts[1:]
  assert not part.cut[0].any()


def test_all_budgets_share_one_program(closer, params):
  answers(closer, params, [1])
  before = len(traced)
  answers(closer, params, [0, 4, 7, None], temperature=0.7)
  assert len(traced) == before


def test_where_thoughts_begin_and_end():
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
  outputs = Rollout(
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
    seconds=0.0,
  )
  generator = types.SimpleNamespace(tokenizer=TOKENIZER)
  first, count = BudgetForcer(generator, 0).thoughts(outputs)  # type: ignore[arg-type]
  assert first[0].tolist() == [first for _, first, _ in rows]
  assert count[0].tolist() == [count for _, _, count in rows]


def test_budgets_out_of_range_are_refused(closer, params):
  with pytest.raises(ValueError, match='budgets: expected 0 tokens or more, got -1'):
    BudgetForcer(closer.generator, -1)
  with pytest.raises(ValueError, match='answer_length: expected 1 or more, got 0'):
    BudgetForcer(closer.generator, 4, 0)
  with pytest.raises(
    ValueError, match=f'budget: expected 0 to {LENGTH} tokens, got 25'
  ):
    answers(closer, params, [25])


class Pool:
  """Right is an output whose text has an even number of signs."""

  def submit(self, problems, texts):
    assert len(problems) == len(texts)
    values = np.array([[len(text) % 2 == 0] for text in texts], np.float32)
    return types.SimpleNamespace(result=lambda: types.SimpleNamespace(values=values))


def test_rows_are_means_over_problems_and_compare_with_the_last(closer, params):
  config = EvalConfig(problems=8, samples=GROUP, prompts_per_batch=4)
  key = jax.random.key(3)
  rows = budget_forcing.measure(
    params,
    key,
    PROBLEMS * 2,
    closer=closer,
    budgets=[0, 3],
    pool=Pool(),  # type: ignore[arg-type]
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
        closer=closer,
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
      closer=closer,
      budgets=[0],
      pool=Pool(),  # type: ignore[arg-type]
      config=config,
      max_length=LENGTH,
    )


# --- The experiment's words ----------------------------------------------------------


def row(budget, thoughts, right, difference, p):
  value = {'mean': right, 'low': right - 0.1, 'high': right + 0.1}
  return {
    'budget': budget,
    'problems': 96,
    'k': 16,
    'pass_at_1': value,
    'tasks': {'equations': value},
    'thoughts': {'mean': thoughts, 'low': 0, 'high': 99},
    'cut': 0.25,
    'right': [],
    'versus_free': {
      'mean': difference,
      'low': difference - 0.05,
      'high': difference + 0.05,
      'p': p,
    },
  }


@pytest.mark.parametrize(
  ('difference', 'p', 'word'),
  [
    (-0.2, 0.001, 'lower than'),
    (0.2, 0.001, 'higher than'),
    (-0.2, 0.04, 'not told apart from'),  # two budgets share the 5 %
    (-0.2, 0.02, 'lower than'),
  ],
)
def test_words_follow_from_the_numbers(difference, p, word):
  rows = [row(0, 0, 0.4, difference, p), row(9, 5, 0.5, 0, 1), row(None, 20, 0.6, 0, 1)]
  shared, first, second = experiment.statements(rows)
  assert shared == (
    '2 comparisons of this one model, by problem, at a level of 5 % in all, so each at '
    '2.5 % with a 97.5 % interval (Bonferroni).'
  )
  assert f'pass@1 with 0 tokens of thoughts is {word} with as many' in first
  assert f'{100 * difference:+.1f} points' in first
  assert 'not told apart' in second


def test_the_table_and_the_figure_show_the_numbers():
  rows = [row(0, 0.0, 0.4, -0.2, 0.001), row(None, 1234.4, 0.6, 0, 1)]
  head, first, last = experiment.table(rows)
  assert head[-1] == 'equations, %'
  assert first == ['0 tokens', '0.0', '25.0', *['40.0 (30.0 to 50.0)'] * 2]
  assert last[:2] == ['free', '1234.4']
  figure = experiment.figure(rows)
  assert '<title>all at 1,234 tokens: 60.0 %</title>' in figure
  assert 'step' not in figure


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'budgets': ()}, 'budgets: expected one or more'),
    ({'budgets': (4, -1)}, 'budgets: expected one or more'),
    ({'budgets': (4, 4)}, 'budgets: expected different numbers'),
    ({'answer_length': 0}, 'answer_length: expected 1 or more, got 0'),
    (
      {'evaluate': EvalConfig(problems=30)},
      'evaluate.problems: expected a multiple of evaluate.prompts_per_batch = 16',
    ),
  ],
)
def test_settings_that_cannot_work_are_refused(fields, told):
  with pytest.raises(ValueError, match=told):
    experiment.Thinking(**fields)
