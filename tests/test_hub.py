"""Tokenizers and chat templates of the hub: what is read, and what they may not do."""

import json

import pytest
import tokenizers
import transformers
from hub import checkpoint

from r1jax import hub, text
from r1jax.stages import pretrained

MESSAGES = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'make 16 from 3 5 2'},
  {'role': 'assistant', 'content': '(3+5)*2'},
  {'role': 'user', 'content': 'again <|eos|>'},
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub') / 'model'
  checkpoint(folder)
  return folder


def test_a_conversation_has_the_ids_that_transformers_gives_it(folder):
  ours = hub.open_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  expected = theirs.apply_chat_template(
    MESSAGES, add_generation_prompt=True, return_dict=False
  )
  prompt = ours.converse(MESSAGES)
  assert prompt.endswith('<|user|>\nagain <|eos|><|eos|>\n<|assistant|>\n')
  assert ours.chat_ids(prompt) == expected
  assert ours.prompt_ids(text.CHAT, MESSAGES[1]['content']) == (
    theirs.apply_chat_template(
      MESSAGES[1:2], add_generation_prompt=True, return_dict=False
    )
  )


def test_special_tokens_by_role_as_text_or_object(folder):
  tokenizer = hub.open_tokenizer(folder)
  assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
  # What a model writes never encodes to them.
  assert not {0, 1} & set(tokenizer.encode('<|pad|> <|eos|>'))


def test_all_tokens_that_end_a_sequence_are_found(folder, tmp_path):
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  for name in ('tokenizer.json', 'config.json'):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [7, 1]}')
  assert hub.open_tokenizer(tmp_path).stop_ids == (1, 7)


def test_a_template_in_a_file_of_its_own_comes_first(folder, tmp_path):
  for name in hub.FILES:
    if (folder / name).exists():
      (tmp_path / name).write_bytes((folder / name).read_bytes())
  (tmp_path / hub.TEMPLATE).write_text("{{ messages[0]['content'] }}<think>\n")
  tokenizer = hub.open_tokenizer(tmp_path)
  prompt = tokenizer.prompt(text.CHAT, 'so')
  assert prompt == 'so<think>'  # jinja drops the last end of line
  assert text.opened(prompt) == '<think>'


def render(source, **names):
  return hub.ChatTemplate(source, names).render(MESSAGES)


@pytest.mark.parametrize(
  'source',
  [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    '{% include "/etc/passwd" %}',
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.append('x') }}",
    '{{ 1 / 0 }}',
    '{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}',
  ],
)
def test_a_template_reaches_neither_files_nor_objects(source):
  with pytest.raises(hub.HubError, match='the chat template cannot write this'):
    render(source)


def test_a_template_may_refuse_messages():
  with pytest.raises(hub.HubError, match='no system message, please'):
    render("{{ raise_exception('no system message, please') }}")


def test_loops_json_and_whitespace_are_those_of_transformers(folder):
  source = """
{%- for message in messages %}
  {%- if loop.index0 == 2 %}{% break %}{% endif %}
{{ message | tojson }}
{% endfor %}"""
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  expected = theirs.apply_chat_template(
    MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=True
  )
  assert render(source) == expected
  assert str(expected).count('"role"') == 2


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('tokenizer.json', None, 'tokenizer.json is not there'),
    ('tokenizer.json', '{}', 'tokenizer.json cannot be read'),
    ('tokenizer_config.json', '[]', 'tokenizer_config.json: expected an object'),
    ('tokenizer_config.json', '{', 'tokenizer_config.json cannot be read'),
    ('tokenizer_config.json', '{"eos_token": "<|eos|>", "chat_template": 3}', 'a text'),
    ('tokenizer_config.json', '{}', 'expected an eos_token .*nothing would end'),
  ],
)
def test_files_that_cannot_be_used_are_named(folder, tmp_path, name, content, message):
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / file).write_bytes((folder / file).read_bytes())
  (tmp_path / name).unlink()
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(hub.HubError, match=message):
    hub.open_tokenizer(tmp_path)


def test_a_tokenizer_without_a_template_says_what_to_choose(folder, tmp_path):
  (tmp_path / 'tokenizer.json').write_bytes((folder / 'tokenizer.json').read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "<|eos|>"}')
  tokenizer = hub.open_tokenizer(tmp_path)
  with pytest.raises(ValueError, match=r"no chat template; choose one of .*'plain'"):
    tokenizer.prompt(text.CHAT, 'so')


def test_the_template_of_r1_needs_its_tokens(folder):
  tokenizer = hub.open_tokenizer(folder)
  with pytest.raises(ValueError, match=r"of 'r1_chat', but it lacks <｜begin▁of▁sent"):
    tokenizer.prompt_ids('r1_chat', 'so')


def test_plain_prompts_begin_as_the_tokenizer_begins_texts(folder, tmp_path):
  made = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='<|pad|> $A', special_tokens=[('<|pad|>', 0)]
  )
  made.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "<|eos|>"}')
  tokenizer = hub.open_tokenizer(tmp_path)
  ids = tokenizer.prompt_ids('plain', 'so')
  assert ids == [0, *tokenizer.encode('User: so\nAssistant:')]


def test_a_stream_holds_back_a_character_that_is_not_complete(folder):
  tokenizer = hub.open_tokenizer(folder)
  source = 'spróbuję → 3 日本'
  ids = tokenizer.encode(source)
  stream = tokenizer.stream()
  pieces = [stream(n) for n in ids]
  assert ''.join(pieces) == source
  assert '' in pieces  # of bytes that make no character yet
  assert not any('\ufffd' in piece for piece in pieces)


def test_a_model_of_the_hub_is_asked_for_the_tags_by_its_own_template(tmp_path):
  checkpoint(tmp_path / 'm')
  tokenizer = hub.open_tokenizer(tmp_path / 'm')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'm')
  messages = [*map(dict, text.EXAMPLE), {'role': 'user', 'content': '3+5'}]
  expected = theirs.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  assert tokenizer.prompt(text.CHAT_TAGS, '3+5') == expected
  assert '<think>reasoning process here</think>' in expected
  assert pretrained.Config(template='chat_tags').template == text.CHAT_TAGS
