"""A run as one program does what the ordinary loop does, for any number of seeds."""

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fused as experiment
from r1jax.algorithms import PRESETS
from r1jax.fused import program
from r1jax.grpo import GRPOConfig
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.optim import OptimConfig
from r1jax.report import fused as page
from r1jax.rewards.pool import Pending, Scores
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime.errors import TrainingError
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import fused, rl, rl_state
from r1jax.stages.learner import Learner
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rl_groups import Actors
from r1jax.tasks import Problem, countdown
from r1jax.text.tokenizer import Tokenizer

PROBLEMS = list(countdown.generate(countdown.CountdownConfig(), 'train'))[:40]
TOKENIZER = Tokenizer.train([p.text for p in PROBLEMS], 300)
TINY = ModelConfig(d_model=32, layers=1, heads=2, kv_heads=1, head_dim=16, d_ff=64)
POLICY = Policy(TINY, TOKENIZER, 'plain')
CONFIG = RLConfig(
  steps=3,
  prompts_per_step=4,
  group_size=4,
  minibatches=2,
  micro_batch_rows=4,
  max_prompt_length=48,
  max_length=((0, 12),),
  temperature=((0, 1.0), (1, 0.9)),
  reference_every=2,
  optim=OptimConfig(learning_rate=3e-3, warmup_steps=0, eps=1e-4),
  # Not the z-score, which blows up the rounding of a penalty between equal verdicts.
  grpo=GRPOConfig(
    advantage='group_centred', kl='k1', kl_in='reward', kl_coef=0.3, mean='tokens'
  ),
)


def order(seed):
  drawn = random.Random(seed).choices(range(len(PROBLEMS)), k=100)
  return lambda index: drawn[index]


@pytest.fixture(autouse=True, scope='module')
def even_lengths_are_right():
  """An untrained model answers nothing, so another reward stands for the verdict."""

  def parse(text):
    # Bytes that are no UTF-8 become a letter on the host, which is not of ASCII.
    inside = jnp.arange(text.bytes.shape[1])[None] < text.lengths[:, None]
    return jnp.sum(inside & (text.bytes < 128), axis=1) % 2 == 0, text

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program.texts, 'parse', parse)
    patch.setattr(
      program.verify, 'right', lambda answer, truth: jnp.ones(len(truth.task), bool)
    )
    yield


class EvenLengths:
  """The same reward on the host."""

  names = ('accuracy',)
  weights = (1.0,)

  def submit(self, problems, texts):
    del problems
    ascii_only = [sum(letter < '\x80' for letter in text) for text in texts]
    even = np.array([count % 2 == 0 for count in ascii_only], np.float32)
    return Pending(lambda: Scores(even[:, None], even, [], 0, 0))


@functools.cache
def base():
  mesh = make_mesh(jax.devices()[:1])
  return POLICY.init(mesh, 0)


@functools.cache
def compiled(config, together):
  return jax.jit(
    functools.partial(
      program.train_all,
      problems=fused.problems_of(POLICY, PROBLEMS, config.max_prompt_length),
      pieces=fused.pieces_of(POLICY),
      settings=fused.settings_of(POLICY, config),
      together=together,
    )
  )


def trained(config, seeds, numbers=None, together=False):
  """Parameters and metrics of these seeds, in one program."""
  steps = [fused.steps_of(config, seed, order(seed)) for seed in seeds]
  varied = {name: jnp.asarray(x, jnp.float32) for name, x in (numbers or {}).items()}
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *steps)
  return compiled(config, together)(base(), stacked, varied)


def ordinary(config, seed):
  """The same of `stages.rl.step`."""
  mesh = make_mesh(jax.devices()[:1])
  sampler = Sampler(POLICY, config.max_prompt_length, mesh)
  learner = Learner(POLICY.functions, mesh, config, POLICY.matrices)
  rewarder: Any = EvenLengths()
  saved = rl_state.start(learner, base())
  state, reference = saved['policy'], saved['reference']
  metrics = []
  for number in range(1, config.steps + 1):
    problems = [PROBLEMS[order(seed)(n)] for n in config.problem_numbers(number)]
    key = jax.random.fold_in(jax.random.key(seed), number)
    state, found, _ = rl.step(
      Actors(sampler, rewarder, learner),
      *(state, reference, problems, key, number, rl_state.Feedback()),
    )
    metrics.append(found)
    if number % config.reference_every == 0:
      reference = jax.tree.map(jnp.copy, state.params)
  return state.params, metrics


def test_a_fused_run_is_the_ordinary_loop():
  params, metrics = trained(CONFIG, [5])
  expected, lines = ordinary(CONFIG, 5)
  assert [line['reward'] for line in lines] == metrics['reward'][0].tolist()
  assert len({line['reward'] for line in lines}) > 1
  names = ('length', 'zero_variance_groups', 'kl', 'entropy', 'drift', 'grad_norm')
  for name in (*names, 'loss'):
    got = metrics[name][0].tolist()
    assert [line[name] for line in lines] == pytest.approx(got, rel=1e-3, abs=1e-5)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected, base())
  assert max(jax.tree.leaves(moved)) > 1e-3
  # float32 sums in another order, over six updates
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x[0], y, atol=2e-4), params, expected
  )


SHORT = dataclasses.replace(CONFIG, steps=2, minibatches=1)


def test_seeds_of_one_program_are_those_of_single_runs():
  seeds = [1, 2, 3]
  whole = trained(SHORT, seeds)
  single = [trained(SHORT, [seed]) for seed in seeds]
  expected = jax.tree.map(lambda *x: np.concatenate(x), *single)
  jax.tree.map(np.testing.assert_array_equal, whole, expected)
  assert len(set(whole[1]['reward'][:, 0].tolist())) > 1
  # Side by side they round otherwise.
  together = trained(SHORT, seeds, together=True)
  assert together[1]['reward'].tolist() == whole[1]['reward'].tolist()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), together[0], whole[0]
  )


def test_numbers_vary_between_the_runs_of_a_program():
  numbers = {'learning_rate': [3e-3, 1e-3], 'kl_coef': [0.1, 0.4]}
  params, metrics = trained(SHORT, [1, 1], numbers)
  config = dataclasses.replace(
    SHORT,
    optim=dataclasses.replace(SHORT.optim, learning_rate=1e-3),
    grpo=dataclasses.replace(SHORT.grpo, kl_coef=0.4),
  )
  alone, seen = trained(config, [1])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x[1], y[0], atol=1e-6), params, alone
  )
  np.testing.assert_allclose(metrics['loss'][1], seen['loss'][0], rtol=1e-5)
  assert np.abs(metrics['loss'][0] - metrics['loss'][1]).max() > 1e-3


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'equal_groups': 'drop'}, "rl.equal_groups: expected 'keep' in a fused run, got"),
    (
      {'max_length': ((0, 8), (5, 12))},
      'rl.max_length: expected one length in a',
    ),
    ({'grpo': GRPOConfig(entropy_target=1.0)}, 'rl.grpo.entropy_target: expected 0 in'),
    ({'grpo': GRPOConfig(advantage='reward_decoupled')}, 'has one reward, got'),
  ],
)
def test_settings_of_the_ordinary_loop_alone_are_refused(fields, expected):
  with pytest.raises(ValueError, match=expected):
    fused.check(dataclasses.replace(CONFIG, **fields))


def test_all_seeds_are_trained_with_each_value(monkeypatch):
  seen: dict[str, Any] = {}

  def train_all(params, steps, numbers, *, together, **rest):
    seen.update(steps=steps, numbers=numbers, together=together)
    runs = len(numbers['kl_coef'])
    reward = jnp.arange(2 * runs, dtype=jnp.float32).reshape(runs, 2)
    return params, {'reward': reward, 'loss': reward, 'grad_norm': reward}

  monkeypatch.setattr(fused, 'train_all', train_all)
  monkeypatch.setattr(jax, 'jit', lambda function: function)
  got = fused.train(
    POLICY,
    {},
    dataclasses.replace(CONFIG, steps=2),
    [PROBLEMS],
    [1.0],
    seeds=[4, 5, 6],
    vary='kl_coef',
    values=(0.1, 0.2),
    together=True,
  )
  assert got['reward'].tolist() == np.arange(12).reshape(2, 3, 2).tolist()
  varied = seen['numbers']['kl_coef'].tolist()
  assert varied == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2, 0.2])
  # The same problems for the same seed, those of the ordinary stream.
  chosen = seen['steps'].chosen.reshape(2, 3, 2, -1)
  assert chosen[0].tolist() == chosen[1].tolist()
  stream = problem_stream([PROBLEMS], [1.0], 5)
  expected = [PROBLEMS.index(stream(n)) for n in range(8)]
  assert chosen[0, 1].reshape(-1).tolist() == expected


@pytest.mark.parametrize(
  ('vary', 'values', 'expected'),
  [
    ('clip', (0.1,), 'vary: expected one of learning_rate, clip_low, .* got .clip.'),
    ('clip_low', (), 'values: expected values of clip_low, got none'),
    ('', (0.1, 0.2), 'values: expected values of no number, as vary is empty, got 0.1'),
    ('clip_low', (0.1, 2.0), 'grpo.clip_low: expected 0 to 1, got 2.0'),
    ('learning_rate', (-1.0, 1.0), 'learning_rate: expected'),
    ('clip_low', (0.1,), 'values: expected 2 to 5 different values of clip_low, got'),
    ('kl_coef', (0.1, 0.1), 'different values of kl_coef, got 0.1 0.1'),
  ],
)
def test_numbers_that_cannot_vary_are_refused(vary, values, expected):
  with pytest.raises(ValueError, match=expected):
    fused.check_numbers(CONFIG, vary, values)
  sapo = dataclasses.replace(CONFIG, grpo=PRESETS['sapo'])
  with pytest.raises(ValueError, match="surrogate 'soft_gate' reads, got 'clip_low'"):
    fused.check_numbers(sapo, 'clip_low', (0.1, 0.2))
  free = dataclasses.replace(CONFIG, grpo=GRPOConfig(kl='none', kl_coef=0.0))
  with pytest.raises(ValueError, match='kl_coef: expected above 0 where it varies'):
    fused.check_numbers(free, 'kl_coef', (0.0, 0.1))


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    ({'lora': LoraConfig(rank=4)}, 'model.lora.rank: expected 0 in a fused run, got 4'),
    ({'template': 'r1_chat'}, 'template: expected one that leaves <think> to the'),
  ],
)
def test_models_that_the_device_cannot_judge_are_refused(change, expected):
  with pytest.raises(ValueError, match=expected):
    fused.settings_of(dataclasses.replace(POLICY, **change), CONFIG)


@pytest.mark.parametrize(
  ('problem', 'expected'),
  [
    (Problem('1', 'instructions', 'sort', {}), 'expected countdown, .* instructions'),
    (
      Problem('25-1=2', 'countdown', 'make', {'numbers': [25, 1], 'target': 2}),
      'countdown.largest: expected at most 20 .* problem 25-1=2',
    ),
  ],
)
def test_problems_that_the_device_cannot_judge_are_refused(problem, expected):
  with pytest.raises(ValueError, match=expected):
    fused.problems_of(POLICY, [*PROBLEMS, problem], 48)


def test_a_run_that_diverges_is_named(monkeypatch):
  def train_all(params, steps, numbers, **rest):
    loss = jnp.zeros((4, 2)).at[3, 1].set(jnp.nan)
    return params, {'loss': loss, 'grad_norm': loss * 0}

  monkeypatch.setattr(fused, 'train_all', train_all)
  config = dataclasses.replace(CONFIG, steps=2)
  with pytest.raises(
    TrainingError, match=r'loss is nan at step 2 with kl_coef 0.2, se'
  ):
    fused.train(
      *(POLICY, {}, config, [PROBLEMS], [1.0]),
      seeds=[4, 5],
      vary='kl_coef',
      values=(0.1, 0.2),
    )


def test_the_page_compares_values_by_seed(tmp_path):
  # By seed the second value is 10 points better, by as much as seeds differ.
  seeds = np.array([[0.2, 0.3, 0.4], [0.3, 0.41, 0.49]])
  reward = np.repeat(seeds[..., None], 12, axis=-1)
  metrics = {
    'reward': reward,
    'length': 10 * reward,
    'zero_variance_groups': 0 * reward,
  }
  runs = page.Runs(['kl 0', 'kl 1'], 7, metrics, 90.0)
  lines = page.write(tmp_path, 'Why?', runs)
  assert lines[0].split()[:6] == ['right', 'in', 'the', 'last', '10', 'steps,']
  # 10 * 4.303 / sqrt(3)
  assert ' '.join(lines[1].split()).startswith('kl 0 30.0 (5.2 to 54.8)')
  (sentence,) = [line for line in lines if line.startswith('kl 1 is')]
  assert sentence.startswith('kl 1 is higher than kl 0, +10.0 points (+7.5 to +12.5)')
  assert 'one program, 1.5 min' in (tmp_path / 'fused.html').read_text()
  rows = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert len(rows) == 2 * 3 * 12
  assert rows[12] == {
    'value': 'kl 0',
    'seed': 8,
    'step': 1,
    'reward': 0.3,
    'length': 3,
    'zero_variance_groups': 0,
  }
  flat = runs._replace(metrics={**metrics, 'zero_variance_groups': 0 * reward + 1})
  assert page.statements(flat) == [
    'The rewards of a group differed in no step, so nothing was learned.'
  ]


def test_the_notebooks_cells_run_in_order(tmp_path, monkeypatch):
  file = Path(experiment.__file__).parent / 'notebooks' / 'seeds.ipynb'
  (tmp_path / 'r1_smoke').mkdir()
  (tmp_path / 'r1_smoke/pipeline.json').write_text('{"r1_zero": "r1_zero-1"}')
  monkeypatch.setenv('SMOKE', '1')
  monkeypatch.setenv('RUNS', str(tmp_path))
  asked = []

  def run(config):
    asked.append(config)
    reward = np.full((2, config.seeds, 3), 0.25)
    names = [f'{config.vary} {value}' for value in config.values]
    found = dict.fromkeys(('reward', 'length', 'zero_variance_groups'), reward)
    return page.Runs(names, 0, found, 1.0)

  monkeypatch.setattr(experiment, 'run', run)
  names: dict[str, Any] = {}
  for cell in json.loads(file.read_text())['cells']:
    if cell['cell_type'] == 'code':
      exec(''.join(cell['source']), names)
      assert not cell['outputs']
  (config,) = asked
  assert (config.parent, config.seeds) == (str(tmp_path / 'r1_smoke/r1_zero-1'), 2)
  assert 'clip_high 0.28' in names['result'].html
