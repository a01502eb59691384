"""Files of a checkpoint: which template counts, and what a copy changes."""

import json

import pytest
import tokenizers
from hub import checkpoint, made, saved

from r1jax.hub import checkpoint_files, tokenizer_files
from r1jax.text import parsing, templates


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub') / 'model'
  checkpoint(folder)
  return folder


def test_a_template_in_a_separate_file_wins(folder, tmp_path):
  for name in checkpoint_files.FILES:
    if (folder / name).exists():
      (tmp_path / name).write_bytes((folder / name).read_bytes())
  (tmp_path / checkpoint_files.TEMPLATE).write_text(
    "{{ messages[0]['content'] }}<think>\n"
  )
  tokenizer = tokenizer_files.open_tokenizer(tmp_path)
  prompt = tokenizer.prompt(templates.CHAT, 'so')
  assert prompt == 'so<think>'  # jinja drops the last end of line
  assert parsing.opened(prompt) == '<think>'


QUESTION = [{'role': 'user', 'content': 'Tom has 12 apples and buys 30. What now?'}]


PLAIN = {'chat_template': 'Q: {{ messages[0].content }} A:'}


@pytest.mark.parametrize(
  'change',
  [
    lambda t: t.enable_truncation(16),
    lambda t: t.enable_truncation(16, direction='left', stride=2),
    lambda t: t.enable_padding(length=64, pad_id=0, pad_token='<pad>'),
    lambda t: t.enable_padding(direction='left', pad_to_multiple_of=8, pad_id=0),
    lambda t: (t.enable_truncation(9), t.enable_padding(length=9)),
  ],
)
def test_saved_truncation_and_padding_are_ignored(change, tmp_path):
  tokenizer = made()
  change(tokenizer)
  theirs, ours = saved(tmp_path / 'm', tokenizer, **PLAIN)
  expected = theirs.apply_chat_template(QUESTION, return_dict=False)
  assert ours.prompt_ids(templates.CHAT, QUESTION[0]['content']) == expected
  for source in ('', 'so', 'the total ' * 9):
    assert ours.encode(source) == ours.encode_after(source) == theirs.encode(source)
  assert ours.prompt_ids('plain', 'so') == theirs.encode('User: so\nAssistant:')
  assert tokenizer_files.bos_id(tmp_path / 'm') is None
  checkpoint_files.copy(tmp_path / 'm', tmp_path / 'copy')
  copied = tokenizers.Tokenizer.from_file(str(tmp_path / 'copy/tokenizer.json'))
  assert copied.truncation is None
  assert copied.padding is None
  assert copied.encode('the total ' * 9).ids == theirs.encode('the total ' * 9)
  assert tokenizer_files.open_tokenizer(tmp_path / 'copy').digest == ours.digest


def test_files_without_truncation_and_padding_are_copied_byte_for_byte(tmp_path):
  saved(tmp_path / 'm', made())
  (tmp_path / 'm/additional_chat_templates').mkdir()
  (tmp_path / 'm/additional_chat_templates/rag.jinja').write_text('x')
  (tmp_path / 'm/special_tokens_map.json').write_text('{}')
  checkpoint_files.copy(tmp_path / 'm', tmp_path / 'copy')
  names = checkpoint_files.files(tmp_path / 'm')
  assert names == checkpoint_files.files(tmp_path / 'copy')
  assert 'additional_chat_templates/rag.jinja' in names
  assert 'special_tokens_map.json' in names
  for name in names:
    assert (tmp_path / 'copy' / name).read_bytes() == (
      tmp_path / 'm' / name
    ).read_bytes()


@pytest.mark.parametrize(
  ('before', 'after'),
  [
    ({'eos_token_id': [283, 282]}, {'eos_token_id': [283, 282, 1]}),
    ({'eos_token_id': 283, 'top_p': 0.9}, {'eos_token_id': [283, 1], 'top_p': 0.9}),
    (None, {'eos_token_id': 1}),
    ({'eos_token_id': [283, 1]}, None),  # the file as it is
  ],
)
def test_a_copy_ends_outputs_at_the_trained_eos(before, after, tmp_path):
  _, ours = saved(tmp_path / 'm', made())
  file = tmp_path / 'm/generation_config.json'
  if before is not None:
    file.write_text(json.dumps(before))
  found = checkpoint_files.copies(tmp_path / 'm', ours.eos_id)['generation_config.json']
  assert found == file if after is None else json.loads(str(found)) == after
  if before is not None:
    assert checkpoint_files.copies(tmp_path / 'm')['generation_config.json'] == file


TOOLS = [{'name': 'default', 'template': 'a'}, {'name': 'tool_use', 'template': 'b'}]


@pytest.mark.parametrize(
  ('settings', 'files'),
  [
    ({'chat_template': TOOLS}, {}),
    ({'chat_template': 'c'}, {}),
    ({'chat_template': 'c'}, {'chat_template.jinja': 'd'}),
    ({'chat_template': TOOLS}, {'chat_template.jinja': 'd'}),
    ({}, {'chat_template.jinja': 'd', 'additional_chat_templates/rag.jinja': 'e'}),
    ({}, {'additional_chat_templates/default.jinja': 'f'}),
  ],
)
def test_several_templates_give_the_one_of_transformers(settings, files, tmp_path):
  (tmp_path / 'm/additional_chat_templates').mkdir(parents=True)
  for name, source in files.items():
    (tmp_path / 'm' / name).write_text(source)
  theirs, ours = saved(tmp_path / 'm', made(), **settings)
  expected = theirs.apply_chat_template(QUESTION, tokenize=False)
  assert ours.prompt(templates.CHAT, 'so') == expected


@pytest.mark.parametrize(
  ('settings', 'files'),
  [
    ({'chat_template': TOOLS[1:]}, {}),
    ({'chat_template': 'c'}, {'additional_chat_templates/rag.jinja': 'e'}),
  ],
)
def test_several_templates_without_a_default_give_none(settings, files, tmp_path):
  (tmp_path / 'm/additional_chat_templates').mkdir(parents=True)
  for name, source in files.items():
    (tmp_path / 'm' / name).write_text(source)
  theirs, ours = saved(tmp_path / 'm', made(), **settings)
  with pytest.raises(ValueError, match='no default specified'):
    theirs.apply_chat_template(QUESTION, tokenize=False)
  (remark,) = ours.remarks
  assert (
    "no chat template named 'default', the only one that is used; it has " in remark
  )
  with pytest.raises(ValueError, match='has no chat template'):
    ours.prompt(templates.CHAT, 'so')
