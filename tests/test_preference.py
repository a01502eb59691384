"""The preference model: its loss, what it reads, its training and its reward."""

import dataclasses
import functools
import json
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from r1jax import optim, reward_model
from r1jax.miniature.judge import Pair
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.rollout.policy import Policy
from r1jax.runtime.errors import Interruption, TrainingError
from r1jax.runtime.run import start
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_batch, put_boxed, replicate
from r1jax.stages import preference, preference_scoring
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.preference_scoring import Scorer
from r1jax.tasks import arithmetic
from r1jax.tasks.arithmetic import ArithmeticConfig
from r1jax.text.tokenizer import Tokenizer
from r1jax.trees import Head

# Not Adam, which divides by the gradient's size and so would hide a wrong one.
SGD = optax.sgd(0.5)
WIDTH, VOCAB = 4, 7
NOTHING: Any = None  # unused here


def forward(params, tokens, positions, documents):
  """Hidden states are the tokens' own rows of a table."""
  del positions, documents
  return params['table'][tokens], None


def toy(seed=0, vocab=VOCAB):
  """A preference model whose score depends on the last token only."""
  rng = np.random.default_rng(seed)
  table, head = rng.normal(size=(vocab, WIDTH)), rng.normal(size=WIDTH)
  params = reward_model.init({'table': jnp.asarray(table, jnp.float32)}, WIDTH)
  return {**params, 'head': jnp.asarray(head, jnp.float32)}


def random_batch(pairs, length, seed=1):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(VOCAB, size=(pairs, 2, length)).astype(np.int32)
  lengths = rng.integers(1, length + 1, size=(pairs, 2, 1))
  return reward_model.Batch(tokens, np.arange(length)[None, None] < lengths)


def last_tokens(batch):
  places = batch.mask.sum(-1, keepdims=True) - 1
  return np.take_along_axis(batch.tokens, places, -1)[..., 0]


def make_step(parts=1, forward=forward):
  return jax.jit(
    functools.partial(
      reward_model.step, forward=forward, optimizer=SGD, micro_batches=parts
    )
  )


def close(got, expected, **tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected
  )


def test_bradley_terry_is_minus_log_sigmoid():
  chosen = np.array([0.0, 3.0, -3.0, 200.0, -200.0], np.float32)
  rejected = np.array([0.0, 1.0, 1.0, 0.0, 0.0], np.float32)
  loss = reward_model.bradley_terry(jnp.asarray(chosen), jnp.asarray(rejected))
  expected = -scipy.special.log_expit(np.float64(chosen) - rejected)
  # float32, whose least number is 1e-38: exp(-200) is 0
  np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-38)
  # By hand: equal scores give log 2, and far apart the loss is the distance.
  np.testing.assert_allclose(loss[0], math.log(2), rtol=1e-6)
  np.testing.assert_allclose(loss[4], 200, rtol=1e-6)


def test_loss_and_metrics_by_hand():
  # The scores of tokens 0, 1, 2 are 0, 1 and 3.
  params = {
    'decoder': {'table': jnp.array([[0.0, 5], [0.5, 5], [1.5, 5]])},
    'head': jnp.array([2.0, 0]),
    'bias': jnp.float32(7),  # the same for both sides
  }
  mask = np.array([[1, 1, 0], [1, 1, 1]], np.bool_)
  batch = reward_model.Batch(
    # 3 above 0, then 1 below 3, then a tie of 1 and 1
    tokens=np.array([[[0, 2, 1], [1, 1, 0]], [[0, 1, 2], [0, 0, 2]], [[2, 1, 0]] * 2]),
    mask=np.stack([mask, mask, mask[[0, 0]]]),
  )
  loss, metrics = reward_model.loss(params, batch, forward=forward, total=3.0)
  expected = -np.log(scipy.special.expit([3, -2, 0])).sum() / 3
  np.testing.assert_allclose(loss, expected, rtol=1e-6)  # float32
  np.testing.assert_allclose(metrics['accuracy'], (1 + 0 + 0.5) / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['margin'], (3 - 2 + 0) / 3, rtol=1e-6)


def test_an_initial_model_scores_all_texts_equally():
  params = reward_model.init({'table': jnp.ones((VOCAB, WIDTH))}, WIDTH)
  batch = random_batch(4, 5)
  loss, metrics = reward_model.loss(params, batch, forward=forward, total=4.0)
  np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)  # float32
  assert metrics == {'accuracy': 0.5, 'margin': 0.0}


def test_step_follows_the_probability_of_a_mistake():
  params, batch = toy(), random_batch(6, 5)
  state, _ = make_step()(optim.init(params, SGD), batch)
  table, head = np.asarray(params['decoder']['table']), np.asarray(params['head'])
  chosen, rejected = last_tokens(batch).T
  difference = table[chosen] - table[rejected]
  mistake = scipy.special.expit(-difference @ head) / 6
  # 1e-6: float32 near 1
  new_head = head + 0.5 * mistake @ difference
  np.testing.assert_allclose(state.params['head'], new_head, atol=1e-6)
  new_table = table.copy()
  np.add.at(new_table, chosen, 0.5 * mistake[:, None] * head)
  np.add.at(new_table, rejected, -0.5 * mistake[:, None] * head)
  np.testing.assert_allclose(state.params['decoder']['table'], new_table, atol=1e-6)
  assert state.params['bias'] == 0


def test_step_is_the_same_for_any_micro_batches():
  state, batch = optim.init(toy(), SGD), random_batch(8, 5)
  one, two, four = (make_step(parts)(state, batch) for parts in (1, 2, 4))
  # float32 sums of 8 terms in another order
  close(two, one, rtol=1e-5, atol=1e-6)
  close(four, one, rtol=1e-5, atol=1e-6)


def test_standardised_scores_have_mean_0_and_deviation_1():
  params, batch = toy(), random_batch(50, 5)
  tokens, mask = (x.reshape(100, 5) for x in (batch.tokens, batch.mask))
  before = reward_model.score(params, tokens, mask, forward=forward)
  params = reward_model.standardised(params, before)
  after = reward_model.score(params, tokens, mask, forward=forward)
  expected = (before - np.mean(before)) / np.std(before)
  np.testing.assert_allclose(after, expected, atol=1e-6)  # float32 near 1


# --- With a decoder ---


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(['yes no User: calculate Assistant:'] * 9, 280)


@pytest.fixture(scope='module')
def tiny(tokenizer):
  """A policy, and parameters drawn without compiling its `init`."""
  config = ModelConfig(d_model=16, layers=1, heads=2, kv_heads=1, head_dim=8, d_ff=32)
  vocab = tokenizer.vocab_size
  rng = np.random.default_rng(0)
  boxed = jax.eval_shape(
    lambda key: decoder.init(config, vocab, key), jax.random.key(0)
  )
  boxed = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), boxed
  )
  params = put_boxed(make_mesh(jax.devices()[:1]), boxed)
  return Policy(config, tokenizer, 'plain'), params


def test_score_ignores_padding(tiny):
  policy, decoder_params = tiny
  rng = np.random.default_rng(0)
  params = {**reward_model.init(decoder_params, 16), 'head': rng.normal(size=16)}

  def score(tokens, mask):
    arrays = jnp.asarray(tokens), jnp.asarray(mask)
    return reward_model.score(params, *arrays, forward=policy.functions.forward)

  tokens = rng.integers(2, 100, size=(3, 6))
  mask = np.arange(6)[None] < np.array([[6], [2], [4]])
  plain = score(tokens, mask)
  # Padding may hold anything and have any length.
  padded = np.where(mask, tokens, rng.integers(2, 100, size=(3, 6)))
  padded = np.concatenate([padded, rng.integers(2, 100, size=(3, 4))], axis=1)
  again = score(padded, np.pad(mask, ((0, 0), (0, 4))))
  # 1e-5: float32 sums of another length
  np.testing.assert_allclose(again, plain, atol=1e-5)
  np.testing.assert_allclose(score(tokens[1:2, :2], mask[1:2, :2]), plain[1], atol=1e-5)
  assert np.std(plain) > 0.1


def test_sharded_step_matches_single_device(tiny):
  policy, decoder_params = tiny
  params = {**reward_model.init(decoder_params, 16), 'head': jnp.linspace(-1, 1, 16)}
  step, batch = make_step(2, policy.functions.forward), random_batch(8, 6)

  def run(devices):
    place = make_mesh(devices)
    state = replicate(place, optim.init(params, SGD))
    rows = put_batch(place, batch)
    with jax.transfer_guard('disallow'):
      return jax.device_get(step(state, rows))

  one, metrics_one = run(jax.devices()[:1])
  four, metrics_four = run(jax.devices()[:4])
  # float32 sums over 8 pairs in another order
  close(four.params, one.params, atol=1e-6)
  close(metrics_four, metrics_one, rtol=1e-5)


PROBLEM = arithmetic.problem(34, '+', 21)


def encode(tokenizer, outputs, max_length=40, problem=PROBLEM):
  return preference_scoring.encode(
    [problem] * len(outputs),
    outputs,
    tokenizer=tokenizer,
    template='plain',
    max_length=max_length,
  )


def test_the_model_reads_the_prompt_what_is_shown_and_an_end(tokenizer):
  tokens, mask = encode(tokenizer, ['<think>5</think> yes <answer>55</answer>'])
  read = tokens[0][mask[0]]
  # Spaces where a tag stood are not what is tested here.
  decoded = tokenizer.decode(read).replace('  ', ' ')
  assert decoded == 'User: calculate 34+21\nAssistant:yes 55'
  assert list(read).count(tokenizer.eos_id) == 1
  assert read[-1] == tokenizer.eos_id
  # Padding is on the right.
  assert mask[0].tolist() == [True] * len(read) + [False] * (40 - len(read))
  assert set(tokens[0][~mask[0]]) == {tokenizer.pad_id}


def test_a_long_text_is_cut_at_the_right(tokenizer):
  prompt = len(tokenizer.encode('User: calculate 34+21\nAssistant:'))
  tokens, mask = encode(tokenizer, ['</think>123456789'], max_length=prompt + 4)
  assert mask.all()
  assert tokenizer.decode(tokens[0][prompt:]) == '123'
  assert tokens[0, -1] == tokenizer.eos_id


def test_a_prompt_without_room_for_a_text_is_refused(tokenizer):
  prompt = len(tokenizer.encode('User: calculate 34+21\nAssistant:'))
  encode(tokenizer, ['</think>1'], max_length=prompt + 2)
  expected = f"max_length: expected at least {prompt + 2}, .* of '34.21' and 2 more"
  with pytest.raises(ValueError, match=expected):
    encode(tokenizer, ['</think>1'], max_length=prompt + 1)


def toy_scorer(tokenizer, forward=forward, devices=1):
  """The score depends on the last token before the end, so it is known by hand."""

  def before_the_end(params, tokens, positions, documents):
    return forward(params, jnp.roll(tokens, 1, axis=1), positions, documents)

  policy: Any = SimpleNamespace(
    functions=DecoderFns(
      before_the_end, NOTHING, NOTHING, NOTHING, Head(NOTHING, NOTHING)
    ),
    tokenizer=tokenizer,
    template='plain',
  )
  return Scorer(
    params=toy(vocab=tokenizer.vocab_size),
    policy=policy,
    max_length=40,
    mesh=make_mesh(jax.devices()[:devices]),
  )


def test_rewards_are_tanh_of_scores_in_any_number_and_on_any_devices(tokenizer):
  # 130 outputs are 3 batches, the last of 2.
  outputs = [f'<think>{n}</think> {n}' for n in range(130)]
  scorer = toy_scorer(tokenizer)
  rewards = scorer([PROBLEM] * 130, outputs)
  ids = [tokenizer.encode(str(n))[-1] for n in range(130)]
  scores = np.asarray(scorer.params['decoder']['table'])[ids] @ scorer.params['head']
  np.testing.assert_allclose(rewards, np.tanh(scores), atol=1e-6)  # float32 near 1
  assert scorer([], []).shape == (0,)
  spread = toy_scorer(tokenizer, devices=3)([PROBLEM] * 130, outputs)
  np.testing.assert_allclose(spread, rewards, atol=1e-6)


def test_rewards_compile_once(tokenizer):
  shapes = []

  def record(params, tokens, positions, documents):
    shapes.append(tokens.shape)
    return forward(params, tokens, positions, documents)

  scorer = toy_scorer(tokenizer, record)
  for count in (1, 64, 100):
    scorer([PROBLEM] * count, ['</think>7'] * count)
  assert shapes == [(64, 40)]


def test_rewards_depend_on_what_is_shown_alone(tiny):
  policy, decoder_params = tiny
  head = jnp.linspace(-1, 1, 16)
  params = {**reward_model.init(decoder_params, 16), 'head': head}
  place = make_mesh(jax.devices()[:1])
  scorer = Scorer(params, policy, 40, place)
  outputs = [
    '<think>no</think> yes <answer>55</answer>',
    '<think>no no 34</think>\n yes <answer>55</answer> ',
    '</think>yes <answer>55',
    '<think>no</think> no <answer>55</answer>',
  ]
  first, *same, other = scorer([PROBLEM] * 4, outputs)
  assert same == [first, first]
  assert abs(other - first) > 0.01


def test_what_shows_nothing_gets_the_lowest_reward(tokenizer):
  scorer = toy_scorer(tokenizer)
  huge = {**scorer.params, 'head': 1e6 * scorer.params['head']}
  scorer = dataclasses.replace(scorer, params=huge)
  outputs = ['<think>yes', '', '</think>', '</think> <answer></answer>']
  digits = [f'</think>{digit}' for digit in range(10)]
  rewards = scorer([PROBLEM] * 14, [*outputs, *digits])
  assert rewards[:4].tolist() == [-1.0] * 4
  assert rewards.min() == -1.0
  assert rewards.max() == 1.0


# --- The training loop ---

ADAM = OptimConfig(learning_rate=1e-2, warmup_steps=0)


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


def yes_is_better(count):
  """One pair each of `count` problems: the same text but for a word."""
  problems = list(arithmetic.generate(ArithmeticConfig(), 'train'))[:count]
  return [
    Pair(problem, f'<think>a</think> {n} yes', f'<think>b</think> {n} no', 2.0)
    for n, problem in enumerate(problems)
  ]


def train(workdir, tiny, pairs, config, interrupted=False):
  policy, params = tiny
  with start(Experiment(str(workdir)), phases=('preference',)) as run:
    run.interrupted = interrupted
    return preference.train(
      run,
      'preference',
      params,
      policy=policy,
      pairs=pairs,
      config=config,
      mesh=make_mesh(jax.devices()[:1]),
      seed=0,
    )


def lines(workdir):
  """What was logged, without what depends on the clock."""
  content = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [{**json.loads(line), 'time': None} for line in content]


def test_the_better_word_is_learned_for_problems_never_seen(
  tmp_path, tiny, monkeypatch
):
  pairs, scored = yes_is_better(240), []
  accuracy = preference._accuracy

  def recorded(score, params, measured):
    scored.append(len(measured.tokens))
    return accuracy(score, params, measured)

  monkeypatch.setattr(preference, '_accuracy', recorded)
  config = PreferenceConfig(
    epochs=2, pairs_per_step=12, max_length=40, held_out=0.2, log_every=5, optim=ADAM
  )
  policy, decoder_params = tiny
  before = jax.tree.map(np.array, decoder_params)
  params = train(tmp_path / 'run', tiny, pairs, config)
  # 192 pairs are 16 steps of 12, twice; held-out pairs are scored at the end alone.
  logged = lines(tmp_path / 'run')
  assert [line['step'] for line in logged] == [5, 10, 15, 20, 25, 30, 32]
  assert ['held_out_accuracy' in line for line in logged] == [False] * 6 + [True]
  # Guessing gives 1/2 of 48 with a deviation of 0.072; this is four of them above.
  assert logged[-1]['held_out_accuracy'] > 0.5 + 4 * 0.072
  assert logged[-1]['loss'] < math.log(2) / 2
  assert logged[-1]['accuracy'] > 0.75
  assert logged[-1]['margin'] > 0
  # The decoder is still there for others.
  jax.tree.map(np.testing.assert_array_equal, before, decoder_params)

  place = make_mesh(jax.devices()[:1])
  scorer = Scorer(params, policy, 40, place)
  # Every training text was measured, so their scores have mean 0 and deviation 1.
  seen, unseen = preference.split(pairs, 0.2)
  assert len(seen) < preference.MEASURED
  assert scored == [len(unseen)] != [len(seen)]
  problems = [pair.problem for pair in seen] * 2
  outputs = [pair.chosen for pair in seen] + [pair.rejected for pair in seen]
  scores = np.arctanh(np.float64(scorer(problems, outputs)))
  # float32: tanh of 2 has lost 4 bits of 24
  np.testing.assert_allclose(scores.mean(), 0, atol=1e-4)
  np.testing.assert_allclose(scores.std(), 1, atol=1e-4)
  held_out = [pair.problem for pair in unseen]
  chosen = scorer(held_out, [pair.chosen for pair in unseen])
  rejected = scorer(held_out, [pair.rejected for pair in unseen])
  assert np.mean(chosen > rejected) == logged[-1]['held_out_accuracy']


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, tiny):
  pairs = yes_is_better(20)
  config = PreferenceConfig(
    epochs=2,
    pairs_per_step=4,
    micro_batches=2,
    max_length=40,
    checkpoint_every=3,
    log_every=1,
    optim=ADAM,
  )
  whole = train(tmp_path / 'whole', tiny, pairs, config)
  with pytest.raises(Interruption, match='Stopped at step 1 of preference'):
    train(tmp_path / 'parts', tiny, pairs, config, interrupted=True)
  parts = train(tmp_path / 'parts', tiny, pairs, config)
  jax.tree.map(np.testing.assert_array_equal, parts, whole)
  assert lines(tmp_path / 'parts') == lines(tmp_path / 'whole')
  # A finished one is only read.
  again = train(tmp_path / 'whole', tiny, pairs, config)
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  # 18 pairs are left, 4 steps of 4 in each epoch.
  assert [line['step'] for line in lines(tmp_path / 'whole')] == list(range(1, 9))


def test_every_epoch_takes_other_pairs_together_and_none_twice():
  data = reward_model.Batch(np.arange(12)[:, None, None], np.ones((12, 1, 1)))
  steps = [
    preference.pair_batch(data, 0, step, 4).tokens.reshape(4) for step in range(1, 7)
  ]
  first, second = np.concatenate(steps[:3]), np.concatenate(steps[3:])
  assert sorted(first) == sorted(second) == list(range(12))
  assert first.tolist() != second.tolist()


def test_held_out_pairs_share_no_problem_with_the_others():
  pairs = [pair for pair in yes_is_better(30) for _ in range(3)]
  training, held_out = preference.split(pairs, 0.11)
  names, held_out_names = (
    {pair.problem.id for pair in part} for part in (training, held_out)
  )
  assert not names & held_out_names
  assert (len(names), len(held_out_names)) == (26, 4)  # 3.3, rounded up
  assert len(training) + len(held_out) == 90
  assert preference.split(pairs, 0.0) == (pairs, [])


def test_too_few_pairs_are_refused_before_training(tmp_path, tiny):
  config = PreferenceConfig(pairs_per_step=10, held_out=0.1)
  expected = 'pairs_per_step: expected at most 9, the pairs left of 10 when 0.1 of'
  with pytest.raises(ValueError, match=expected):
    train(tmp_path / 'run', tiny, yes_is_better(10), config)
  # 10 of 12 are left, a step an epoch.
  assert (
    preference.updates(yes_is_better(12), PreferenceConfig(epochs=3, pairs_per_step=10))
    == 3
  )


def test_a_model_that_learned_nothing_is_refused(tmp_path, tiny):
  still = OptimConfig(learning_rate=0.0)
  config = PreferenceConfig(pairs_per_step=4, max_length=40, optim=still)
  with pytest.raises(TrainingError, match='gives every text the score 0 after 2 steps'):
    train(tmp_path / 'run', tiny, yes_is_better(10), config)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, tiny, monkeypatch):
  monkeypatch.setattr(optim, 'make', lambda *_, **settings: optax.sgd(math.nan))
  config = PreferenceConfig(pairs_per_step=4, max_length=40, log_every=1)
  expected = 'loss of preference is nan .* step 2; lower preference.optim.learning_rate'
  with pytest.raises(TrainingError, match=expected):
    train(tmp_path / 'run', tiny, yes_is_better(10), config)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'epochs': 0}, 'preference.epochs: expected 1 or more, got 0'),
    ({'held_out': 1.0}, 'preference.held_out: .* less than 1, got 1.0'),
    ({'pairs_per_step': 6, 'micro_batches': 4}, 'divisor of pairs_per_step=6, got 4'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    PreferenceConfig(**fields)
