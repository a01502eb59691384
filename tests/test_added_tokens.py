"""Tokens that other files than tokenizer.json define, against transformers."""

import json

import pytest
from hub import ROLES, SPECIALS, made, saved
from tokenizers import AddedToken

from r1jax.hub import checkpoint_files, tokenizer_files
from r1jax.text import templates

QUESTION = [{'role': 'user', 'content': 'Tom has 12 apples and buys 30. What now?'}]


OBJECTS = {
  role: {'content': token, 'lstrip': False, 'rstrip': False, 'normalized': False}
  for role, token in ROLES.items()
}


WRITES = {
  'chat_template': '{{ bos_token }}{% for m in messages %}{{ m.content }}'
  '{{ eos_token }}{% endfor %}'
}


ADDED = {'added_tokens_decoder': {'2': {'content': '<s>', 'special': True}}}


@pytest.mark.parametrize(
  ('roles', 'named'),
  [
    ({}, ROLES),
    ({}, OBJECTS),
    ({'bos_token': None, 'eos_token': '</s>'}, ROLES),
    ({**ROLES, 'bos_token': '<pad>'}, ROLES),  # the older file goes first,
    ({**ROLES, **ADDED}, {**ROLES, 'bos_token': '<pad>'}),  # and doesn't count here
    ({'eos_token': '</s>', **ADDED}, ROLES),
    (ROLES, {}),
    ({**ROLES, 'bos_token': 'so'}, {}),  # a word, but not among the added tokens
  ],
)
def test_roles_are_those_of_transformers(roles, named, tmp_path):
  (tmp_path / 'm').mkdir()
  (tmp_path / 'm/special_tokens_map.json').write_text(json.dumps(named))
  (tmp_path / 'm/generation_config.json').write_text('{"eos_token_id": 1}')
  theirs, ours = saved(tmp_path / 'm', made(), roles, **WRITES)
  messages = [{'role': 'user', 'content': 'also'}]
  expected = theirs.apply_chat_template(messages, return_dict=False)
  assert ours.prompt_ids(templates.CHAT, 'also') == expected
  pad = theirs.pad_token_id
  assert ours.pad_id == (ours.eos_id if pad is None else pad)
  assert tokenizer_files.named_bos_id(tmp_path / 'm') == theirs.bos_token_id


@pytest.mark.parametrize(
  'flags',
  [{}, {'lstrip': True, 'rstrip': True}, {'special': True}, {'normalized': True}],
)
def test_listed_tokens_override_those_of_the_file(flags, tmp_path):
  tokenizer = made()
  tokenizer.add_tokens([AddedToken('<tool>', normalized=False)])
  listed = {
    str(n): {'content': token, 'special': True, 'normalized': False}
    for n, token in enumerate(SPECIALS)
  }
  first = tokenizer.token_to_id('<tool>')
  for n, token in enumerate(['<tool>', '<new>']):
    listed[str(first + n)] = {'content': token, 'normalized': False, **flags}
  theirs, ours = saved(tmp_path / 'm', tokenizer, added_tokens_decoder=listed)
  source = 'so <tool> so <new> so'
  assert ours.chat_ids(source) == theirs.encode(source)
  assert ours.encode(source) == theirs.encode(source)
  assert '<tool>' in ours.decode(theirs.encode(source))
  assert tokenizer_files.open_tokenizer(tmp_path / 'm').content['added_tokens'][-1][
    'content'
  ] == ('<new>')


TOOL = {'<tool>': 288, '<x>': 289}


def objects(*tokens, **flags):
  off = dict.fromkeys(('lstrip', 'rstrip', 'normalized', 'single_word'), False)
  return [{'content': token, **off, **flags} for token in tokens]


@pytest.mark.parametrize(
  ('settings', 'files'),
  [
    ({}, {'added_tokens.json': TOOL}),
    ({'pad_token': '<x>'}, {'added_tokens.json': TOOL}),
    ({}, {'added_tokens.json': {'<s>': 2, 'al': 270}}),  # what tokenizer.json has
    (ADDED, {'added_tokens.json': TOOL}),  # which doesn't count beside these
    (
      {},
      {
        'added_tokens.json': TOOL,
        'special_tokens_map.json': {'additional_special_tokens': ['<x>', 'al']},
      },
    ),
    *(
      ({name: tokens}, {})
      for name in ('additional_special_tokens', 'extra_special_tokens')
      for tokens in (
        ['al', 'so'],  # words of the vocabulary
        ['<tool>', 'al'],  # and one that it lacks
        [{'__type': 'AddedToken', **x} for x in objects('al', rstrip=True)],
      )
    ),
    ({}, {'special_tokens_map.json': {'additional_special_tokens': ['al']}}),
    (
      {'extra_special_tokens': ['so']},
      {'special_tokens_map.json': {'extra_special_tokens': objects('al')}},
    ),
    (
      {'additional_special_tokens': ['so']},
      {'special_tokens_map.json': {'additional_special_tokens': ['al']}},
    ),
    (ADDED, {'special_tokens_map.json': {'additional_special_tokens': ['al']}}),
    ({'extra_special_tokens': {'image': 'al', 'box_token': '<tool>'}}, {}),
    ({'think_token': 'al', 'mask_token': '<x>', 'cls_token': '<tool>'}, {}),
    ({'split_special_tokens': True, 'extra_special_tokens': ['<think>', 'al']}, {}),
    ({'split_special_tokens': False, 'extra_special_tokens': ['<think>']}, {}),
    ({'add_bos_token': True, 'add_eos_token': True}, {}),
  ],
)
def test_added_and_special_tokens_of_all_files_are_those_of_transformers(
  settings, files, tmp_path
):
  (tmp_path / 'm').mkdir()
  for name, content in files.items():
    (tmp_path / 'm' / name).write_text(json.dumps(content))
  chat = {'chat_template': 'Q: {{ image }}{{ think_token }}{{ messages[0].content }}'}
  theirs, ours = saved(tmp_path / 'm', made(), **chat, **settings)
  for source in ('so <tool> the total<x>al', '<s>so</s> <think>al</think> total'):
    assert ours.chat_ids(source) == theirs.encode(source, add_special_tokens=False)
  expected = theirs.apply_chat_template(QUESTION, return_dict=False)
  assert ours.prompt_ids(templates.CHAT, QUESTION[0]['content']) == expected
  tags = 'so <think>so</think>'
  assert ours.encode(tags) == ours.encode_after(tags) == theirs.encode(tags)
  checkpoint_files.copy(tmp_path / 'm', tmp_path / 'copy')
  assert tokenizer_files.open_tokenizer(tmp_path / 'copy').digest == ours.digest


def test_a_token_without_a_row_of_the_embedding_is_not_added(tmp_path):
  (tmp_path / 'm').mkdir()
  tokenizer = made()
  size = tokenizer.get_vocab_size()
  settings = {**ROLES, 'pad_token': '[PAD]', 'additional_special_tokens': ['<x>']}
  for room, added in ((0, 0), (1, 1), (9, 2)):
    (tmp_path / 'm/config.json').write_text(json.dumps({'vocab_size': size + room}))
    theirs, ours = saved(tmp_path / 'm', tokenizer, settings)
    assert ours.vocab_size == size + added
    assert ours.pad_id == (theirs.pad_token_id if added else ours.eos_id)
