"""A conversation: the tokens that sampling gives, thoughts, plain errors."""

import itertools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hub import FAMILIES, checkpoint, ours, theirs

from r1jax.hub import weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.model import decode_weights, decoder
from r1jax.sampling import generate, streaming
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import chat

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('chat') / 'model'
  checkpoint(folder, 'deepseek_v3')
  return folder


def test_an_answer_has_the_tokens_of_the_sampler(folder):
  session = chat.open_session(str(folder), None, GREEDY, dtype='float32')
  _, ids = session.prompt([{'role': 'user', 'content': 'make 16 from 3 5 2'}])
  tokens = list(session.tokens(ids, jax.random.key(0), 30))
  expected = generate.sample(
    session.params,
    jax.random.split(jax.random.key(0), 1),
    jnp.asarray([ids]),
    jnp.ones((1, len(ids)), bool),
    model=session.policy.functions,
    config=GREEDY,
    group_size=1,
    max_length=30,
    stop_ids=session.policy.tokenizer.stop_ids,
  )
  mask = expected.mask[0, 0]
  stops = session.policy.tokenizer.stop_ids
  assert tokens == [n for n in expected.tokens[0, 0][mask].tolist() if n not in stops]
  assert tokens


def test_an_answer_begins_with_the_box_that_its_prompt_has_opened(folder):
  session = chat.open_session(str(folder), 'chat_answer', GREEDY)
  messages = [{'role': 'user', 'content': '3+5'}]
  chunks = list(session.answer(messages, jax.random.key(0), 4))
  assert chunks[0] == ('The answer is \\boxed{', False)
  assert len(chunks) > 1


def test_a_conversation_that_is_too_long_is_refused(folder):
  session = chat.open_session(str(folder), None, GREEDY, dtype='float32')
  messages = [{'role': 'user', 'content': 'so ' * 300}]
  with pytest.raises(ValueError, match=r'expected at most 255 tokens, .*'):
    list(session.answer(messages, jax.random.key(0), 10))


def runs_of(pieces, thinking=False):
  """Runs of thoughts and of the rest."""
  found = chat.split_thoughts(iter(pieces), thinking)
  return [
    (thought, ''.join(piece.text for piece in run))
    for thought, run in itertools.groupby(found, lambda piece: piece.thought)
  ]


@pytest.mark.parametrize('size', [1, 2, 5, 100])
def test_thoughts_are_found_wherever_pieces_end(size):
  output = 'a <think>b < c</think> d<answer>e</answer><'
  pieces = [output[n : n + size] for n in range(0, len(output), size)]
  assert runs_of(pieces) == [(False, 'a '), (True, 'b < c'), (False, ' de<')]


def test_a_prompt_may_have_opened_the_thoughts():
  assert runs_of(['a</th', 'ink>b'], thinking=True) == [(True, 'a'), (False, 'b')]


def test_what_may_become_a_tag_is_held_back():
  stream = chat.split_thoughts(iter(['3<', '5', '<thi', 's']))
  assert next(stream).text == '3'
  assert next(stream).text == '<5'
  assert next(stream).text == '<this'


def run(*words):
  done = subprocess.run(
    [sys.executable, '-m', 'scripts.chat', *words],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


def test_one_question_from_the_command_line(folder):
  code, out, err = run(str(folder), '--prompt', '3 5', '--max-length', '8')
  assert (code, err) == (0, '')
  assert out.endswith('\n')


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ((), 'error: path: expected the work directory of a finished stage or the fold'),
    (('/nowhere',), 'error: path: expected the work directory .*no config.json'),
    (('x', '--max-length', '0'), 'error: max_length: expected 1 or more, got 0'),
  ],
)
def test_mistakes_are_one_sentence(words, message):
  code, out, err = run(*words)
  assert code
  assert not out
  assert len(err.strip().splitlines()) == 1
  assert re.match(message, err)


def test_streamed_logits_are_those_of_the_whole_text(tmp_path):
  model, params = ours(theirs('qwen3', FAMILIES['qwen3']), tmp_path / 'm')
  tokens = np.random.default_rng(0).integers(101, size=12)
  mask = np.ones((1, 5), bool)
  logits, state = streaming.prefill(
    params, jnp.asarray(tokens[None, :5]), jnp.asarray(mask), model=model, room=8
  )
  found = [logits[0]]
  for token in tokens[5:]:
    logits, state = streaming.decode_step(
      params, state, jnp.asarray(token[None]), model=model
    )
    found.append(logits[0])
  row = tokens[None]
  hidden, _ = model.forward(params, row, np.arange(12)[None], np.zeros_like(row))
  expected = model.logits(params, hidden)[0, 4:]
  np.testing.assert_allclose(jnp.stack(found), expected, atol=2e-5)


def test_weights_are_prepared_once_a_conversation(folder, monkeypatch):
  session = chat.open_session(str(folder), None, GREEDY, dtype='float32')
  prepared = []
  real = chat.decode_weights.decode_params

  def counted(config, params, single):
    prepared.append(config)
    return real(config, params, single)

  monkeypatch.setattr(chat.decode_weights, 'decode_params', counted)
  tokens = [list(session.tokens(ids, jax.random.key(0), 9)) for ids in ([5, 7], [5, 7])]
  assert tokens[0] == tokens[1]
  assert len(tokens[0]) > 3
  assert len(prepared) == 1


@pytest.mark.parametrize('family', ['qwen3', 'qwen2', 'deepseek_v3', 'gemma3_text'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_prepared_weights_give_the_same_logits(family, dtype, tmp_path):
  checkpoint(tmp_path / 'm', family)
  found = open_checkpoint(tmp_path / 'm')
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = weights.read(found, place, dtype)
  model = DecoderFns(*decoder.functions(found.config, found.vocab_size))
  row = jnp.asarray([[3, 5, 2]])
  prompt = (params, row, jnp.ones((1, 3), bool))
  _, state = streaming.prefill(*prompt, model=model, room=4)
  once = decode_weights.decode_params(found.config, params)
  expected, _ = streaming.decode_step(params, state, jnp.asarray([7]), model=model)
  logits, _ = streaming.decode_step(once, state, jnp.asarray([7]), model=model)
  np.testing.assert_array_equal(logits, expected)


def test_a_folder_keeps_its_type(tmp_path):
  checkpoint(tmp_path / 'm', 'qwen3')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'm', dtype=torch.bfloat16
  )
  model.save_pretrained(tmp_path / 'm')
  session = chat.open_session(str(tmp_path / 'm'), None, GREEDY, dtype='float32')
  assert {x.dtype.name for x in jax.tree.leaves(session.params)} == {'bfloat16'}
  assert list(session.tokens([5, 7], jax.random.key(0), 5))


@pytest.mark.parametrize(('dtype', 'int8'), [('bfloat16', False), ('float32', True)])
def test_rounded_weights_give_nearly_the_same_logits(dtype, int8, tmp_path):
  checkpoint(tmp_path / 'm', 'qwen2', {'hidden_size': 64, 'intermediate_size': 128})
  path = str(tmp_path / 'm')
  whole = chat.open_session(path, None, GREEDY, dtype='float32')
  small = chat.open_session(path, None, GREEDY, dtype=dtype, int8=int8)
  found = []
  for session in (whole, small):
    model = session.policy.functions
    row = (session.params, jnp.asarray([[3, 5, 2]]), jnp.ones((1, 3), bool))
    _, state = streaming.prefill(*row, model=model, room=4)
    token = jnp.asarray([7])
    decoded = streaming.decode_step(session.decode_params, state, token, model=model)
    found.append(np.asarray(decoded[0]))
  assert small.decode_params.head is not None
  assert np.abs(found[1] - found[0]).max() < 0.05 * np.abs(found[0]).max()
