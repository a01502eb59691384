"""The benchmark: its counts of operations and bytes, and what it runs on a checkpoint.

Counts are compared with counting one by one.
"""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hub import checkpoint, everywhere

from r1jax.hub import weights
from r1jax.model import decoder
from scripts import bench, iteration, shapes
from scripts.shapes import Shape

TINY = Shape(
  vocabulary=7,
  d_model=6,
  layers=2,
  heads=3,
  kv_heads=1,
  head_dim=4,
  d_ff=5,
  prompts=2,
  group_size=3,
  prompt_length=4,
  length=5,
  micro_batch_rows=2,
)


def count(shape, attention):
  """Multiply-adds of one forward pass, a position, a layer and a key at a time."""
  total = 0
  heads = shape.heads * shape.head_dim
  kv_heads = shape.kv_heads * shape.head_dim
  for _ in range(shape.prompts):
    # A prompt once; of each output all but the last token, which is never read.
    rows = [range(shape.prompt_length)] + [
      range(shape.prompt_length, shape.prompt_length + shape.length - 1)
    ] * shape.group_size
    for row in rows:
      for position in row:
        for _ in range(shape.layers):
          total += shape.d_model * (heads + 2 * kv_heads) + heads * shape.d_model
          total += 3 * shape.d_model * shape.d_ff
          if attention:
            total += 2 * heads * (position + 1)
    total += shape.group_size * shape.length * shape.d_model * shape.vocabulary
  return total


@pytest.mark.parametrize('attention', [True, False])
def test_a_multiply_add_counts_as_two_operations(attention):
  work = shapes.flops(TINY, attention)
  forward = 2 * count(TINY, attention)
  assert work == {'rollout': forward, 'reference': forward, 'update': 3 * forward}


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
def test_decoding_reads_all_weights_and_the_cache_at_every_step(dtype, size):
  # query 6x12, key and value 6x4, out 12x6, three of 6x5; two layers; the head 7x6
  weights = 2 * (72 + 2 * 24 + 72 + 90) + 42
  # two layers, keys and values of 4 channels: 4 of a prompt, 2.5 of each output
  cache = 2 * 2 * 4 * 2 * (4 + 3 * 2.5)
  assert (
    shapes.rollout_bytes(TINY._replace(dtype=dtype)) == 5 * (weights + cache) * size
  )


def test_an_iteration_runs_the_programs_of_the_stage():
  stage, before = iteration.of_shape(TINY)
  old = jax.device_get(before['policy'].params)
  state, seconds = iteration.iterate(
    TINY, stage, before['reference'], before['policy'], 1
  )
  assert seconds.keys() == {'rollout', 'reference', 'update'}
  assert int(state.step) == 1
  assert (np.asarray(state.params['embedding']) != old['embedding']).any()


def test_an_update_of_adapters_computes_no_gradient_of_the_weights():
  # inputs and outputs: query 6+12, key and value 6+4, out 12+6, three of 6+5
  ends = 18 + 2 * 10 + 18 + 3 * 11
  tokens = 2 * 4 + 2 * 3 * 4  # the prompts', and all but the last of each output
  adapters = 2 * 2 * 2 * ends * tokens  # operations, layers, rank
  products = 2 * count(TINY, attention=False)
  attention = 2 * count(TINY, attention=True) - products
  work = shapes.flops(TINY._replace(lora_rank=2))
  assert work['rollout'] == work['reference'] == products + attention
  assert work['update'] == 2 * products + 3 * attention + 3 * adapters


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A checkpoint whose embedding is its head."""
  made = tmp_path_factory.mktemp('bench') / 'tied'
  checkpoint(made, 'qwen2', {'tie_word_embeddings': True})
  return made


def shape_of(found, rank=0):
  return shapes.of_model(found.policy.config, found.policy.vocab_size, rank)


def test_a_checkpoint_has_the_shape_that_its_config_says(folder):
  assert shape_of(iteration.look_up(str(folder), 'bfloat16', 4), 4) == Shape(
    vocabulary=300,
    d_model=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,  # 32 / 4
    d_ff=48,
    prompts=4,
    group_size=8,
    prompt_length=32,
    length=128,
    micro_batch_rows=8,
    dtype='bfloat16',
    lora_rank=4,
  )


def test_the_head_counts_once_whether_it_is_the_embedding_or_not(folder, tmp_path):
  checkpoint(tmp_path / 'untied', 'llama', {'tie_word_embeddings': False})
  for path in (folder, tmp_path / 'untied'):
    found = iteration.look_up(str(path), 'float32', 0)
    body = sum(
      math.prod(tensor.shape)
      for name, tensor in found.checkpoint.tensors.items()
      if 'layers' in name and len(tensor.shape) == 2
    )
    read = 4 * 32 + 4 * 8 * 127  # tokens: the prompts', and 127 of 128 of each output
    sampled = 4 * 8 * 128
    forward = 2 * (body * read + 300 * 32 * sampled)
    assert shapes.flops(shape_of(found), attention=False)['rollout'] == forward


def iterated(folder, dtype, rank):
  """An iteration on a checkpoint: its weights, what it starts from, the new state."""
  found = iteration.look_up(str(folder), dtype, rank)
  sizes = {'prompts': 2, 'group_size': 4, 'length': 3, 'prompt_length': 5}
  shape = shape_of(found, rank)._replace(**sizes)
  stage, saved = iteration.of_checkpoint(found, shape)
  before = jax.device_get(saved['policy'].params)
  state, _ = iteration.iterate(shape, stage, saved['reference'], saved['policy'], 1)
  return weights.read(found.checkpoint, everywhere), stage, saved, before, state


def equal(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_bfloat16_is_the_type_of_products_and_not_of_the_weights(folder):
  read, stage, saved, before, state = iterated(folder, 'bfloat16', 0)
  config = stage.sampler.policy.config
  assert config.dtype == 'bfloat16'
  assert equal(before, read)
  assert equal(saved['reference'], decoder.as_multiplied(read, config))
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
  for new, old in zip(*map(jax.tree.leaves, (state.params, read)), strict=True):
    assert (np.asarray(new) != np.asarray(old)).any()


def test_with_a_rank_the_adapters_alone_are_trained(folder):
  read, stage, saved, before, state = iterated(folder, 'float32', 3)
  adapters = state.params['blocks']
  assert state.params.keys() == {'blocks'}
  assert adapters.keys() == {'query', 'key', 'value', 'out', 'gate', 'up', 'down'}
  for name, pair in adapters.items():
    assert pair['a'].shape[-1] == pair['b'].shape[1] == 3, name
    assert (before['blocks'][name]['b'] == 0).all(), name
    assert (np.asarray(pair['b']) != 0).any(), name
  assert equal(saved['reference'], before)
  assert equal(stage.learner.frozen, read)


def test_processes_of_their_own_measure_what_the_flags_say(folder):
  words = ['--model', str(folder), '--lora', '2', '--dtype', 'bfloat16']
  words += ['--prompts', '2', '--group-size', '4', '--length', '3', '--iterations', '1']
  done = subprocess.run(
    [sys.executable, '-m', 'scripts.bench', *words],
    capture_output=True,
    text=True,
    timeout=600,
    check=True,
  )
  line, head, *table = done.stdout.splitlines()
  row = json.loads(line)
  shape = Shape(300, 32, 2, 4, 2, 8, 48, 2, 4, 32, 3, 8, 'bfloat16', 2)
  assert {name: row[name] for name in shape._fields} == shape._asdict()
  assert row['gflop'] == {name: n / 1e9 for name, n in shapes.flops(shape).items()}
  assert row['first_seconds'].keys() == row['cached_seconds'].keys()
  assert head.split() == ['tied']
  assert [line for line in table if line.startswith('peak memory MB')]


def refused(capsys, monkeypatch, *words):
  """What the benchmark says about these words, in one line."""
  monkeypatch.setattr(sys, 'argv', ['bench', *words])
  capsys.readouterr()
  with pytest.raises(SystemExit) as stopped:
    bench.main()
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


@pytest.mark.parametrize(
  ('words', 'sentence'),
  [
    (['--model', 'a', '--shapes', 'mini'], 'argument --shapes: not allowed with'),
    (['--model', 'a', '--lora', '0'], '--lora: expected 1 or more, got 0'),
    (['--group-size', '1'], '--group-size: expected 2 or more, got 1'),
    (['--length', '0'], '--length: expected 1 or more, got 0'),
  ],
)
def test_impossible_flags_are_refused(words, sentence, capsys, monkeypatch):
  assert sentence in refused(capsys, monkeypatch, *words)


def test_what_is_no_checkpoint_is_refused(folder, tmp_path, capsys, monkeypatch):
  for path, sentence in (
    (tmp_path / 'gone', 'which does not exist'),
    (folder / 'model.safetensors', 'expected a GGUF file, or a folder with'),
    (tmp_path, f'{tmp_path / "config.json"} does not exist'),
  ):
    line = refused(capsys, monkeypatch, '--alone', '--model', str(path))
    assert sentence in line


@pytest.mark.parametrize(
  ('model_type', 'part'),
  [('qwen3_moe', 'experts'), ('deepseek_v3', 'experts and latent attention')],
)
def test_a_model_whose_operations_are_not_counted_is_refused(
  model_type, part, tmp_path, capsys, monkeypatch
):
  checkpoint(tmp_path / 'model', model_type)
  words = ['--alone', '--model', str(tmp_path / 'model')]
  assert part in refused(capsys, monkeypatch, *words)


def test_the_refusal_of_a_process_ends_the_benchmark():
  done = subprocess.run(
    [sys.executable, '-m', 'scripts.bench', '--model', 'no/such/folder'],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, '')
  (line,) = done.stderr.splitlines()
  assert 'no/such/folder, which does not exist' in line
