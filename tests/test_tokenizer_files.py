"""Tokenizers of the hub: the ids of transformers, and what text may not encode to."""

import json
import shutil

import pytest
import tokenizers
import transformers
from hub import OUTPUT, SPECIALS, checkpoint, made, saved
from hub import theirs as theirs_of_hub
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post

from r1jax import tasks
from r1jax.hub import chat_template, tokenizer_files
from r1jax.model.config import ModelConfig
from r1jax.rewards import rules
from r1jax.rollout.policy import Policy
from r1jax.stages.from_hub import HubConfig
from r1jax.text import parsing, templates

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


def test_conversations_have_the_ids_of_transformers(folder):
  ours = tokenizer_files.open_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  expected = theirs.apply_chat_template(
    MESSAGES, add_generation_prompt=True, return_dict=False
  )
  prompt = ours.chat_prompt(templates.CHAT, MESSAGES)
  assert prompt.endswith('<|user|>\nagain <|eos|><|eos|>\n<|assistant|>\n')
  assert ours.chat_ids(prompt) == expected
  assert ours.prompt_ids(templates.CHAT, MESSAGES[1]['content']) == (
    theirs.apply_chat_template(
      MESSAGES[1:2], add_generation_prompt=True, return_dict=False
    )
  )


def test_special_tokens_by_role_as_text_or_object(folder):
  tokenizer = tokenizer_files.open_tokenizer(folder)
  assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
  # What a model writes never encodes to them.
  assert not {0, 1} & set(tokenizer.encode('<|pad|> <|eos|>'))


def test_all_tokens_that_end_a_sequence_are_found(folder, tmp_path):
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  for name in ('tokenizer.json', 'config.json'):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [7, 1]}')
  assert tokenizer_files.open_tokenizer(tmp_path).stop_ids == (1, 7)
  # A row of the embedding without a token is one that transformers stops at as well.
  rows = json.loads((folder / 'config.json').read_text())['vocab_size']
  ids = json.dumps({'eos_token_id': [rows - 1, rows]})
  (tmp_path / 'generation_config.json').write_text(ids)
  assert tokenizer_files.open_tokenizer(tmp_path).stop_ids == (1, rows - 1)


def test_ids_may_have_gaps(folder, tmp_path):
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  content = json.loads((folder / 'tokenizer.json').read_text())
  end = {**content['added_tokens'][1], 'id': 290, 'content': '<|im_end|>'}
  content['model']['vocab'] |= {'<|im_end|>': 290}
  content['added_tokens'].append(end)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [1, 290]}')
  (tmp_path / 'config.json').unlink()
  tokenizer = tokenizer_files.open_tokenizer(tmp_path)
  assert tokenizer.vocab_size == 291
  assert tokenizer.stop_ids == (1, 290)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs.convert_tokens_to_ids('<|im_end|>') == 290
  assert len(theirs) < 290


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('tokenizer.json', None, 'tokenizer.json does not exist'),
    ('tokenizer.json', '{}', 'tokenizer.json cannot be read'),
    ('tokenizer_config.json', '[]', 'tokenizer_config.json: expected an object'),
    ('tokenizer_config.json', '{', 'tokenizer_config.json cannot be read'),
    (
      'tokenizer_config.json',
      '{"eos_token": "<|eos|>", "chat_template": 3}',
      'a string',
    ),
    (
      'tokenizer_config.json',
      '{"added_tokens_decoder": {"a": 3}}',
      'tokens by id, and',
    ),
    (
      'tokenizer_config.json',
      '{"added_tokens_decoder": {"3": {}}}',
      "its content .*'content",
    ),
    ('tokenizer_config.json', '{}', 'expected an eos_token .*would never end'),
  ],
)
def test_files_that_cannot_be_used_are_named(folder, tmp_path, name, content, message):
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / file).write_bytes((folder / file).read_bytes())
  (tmp_path / name).unlink()
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(chat_template.HubError, match=message):
    tokenizer_files.open_tokenizer(tmp_path)


def test_a_tokenizer_without_a_template_says_what_to_choose(folder, tmp_path):
  (tmp_path / 'tokenizer.json').write_bytes((folder / 'tokenizer.json').read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "<|eos|>"}')
  tokenizer = tokenizer_files.open_tokenizer(tmp_path)
  with pytest.raises(ValueError, match=r"no chat template; choose one of .*'plain'"):
    tokenizer.prompt(templates.CHAT, 'so')


def test_the_template_of_r1_needs_its_tokens(folder):
  tokenizer = tokenizer_files.open_tokenizer(folder)
  with pytest.raises(ValueError, match=r"of 'r1_chat', but it lacks <｜begin▁of▁sent"):
    tokenizer.prompt_ids('r1_chat', 'so')


def test_plain_prompts_begin_with_the_tokenizers_prefix(folder, tmp_path):
  made = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='<|pad|> $A', special_tokens=[('<|pad|>', 0)]
  )
  made.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "<|eos|>"}')
  tokenizer = tokenizer_files.open_tokenizer(tmp_path)
  ids = tokenizer.prompt_ids('plain', 'so')
  assert ids == [0, *tokenizer.encode('User: so\nAssistant:')]


def test_a_stream_holds_back_incomplete_characters(folder):
  tokenizer = tokenizer_files.open_tokenizer(folder)
  source = 'spróbuję → 3 日本'
  ids = tokenizer.encode(source)
  stream = tokenizer.stream()
  pieces = [stream(n) for n in ids]
  assert ''.join(pieces) == source
  assert '' in pieces  # of bytes that make no character yet
  assert not any('\ufffd' in piece for piece in pieces)


QUESTION = [{'role': 'user', 'content': 'Tom has 12 apples and buys 30. What now?'}]


TAG_SETS = [parsing.TAGS, parsing.TAGS[:2], parsing.TAGS[2:], ()]


@pytest.mark.parametrize('special', TAG_SETS)
@pytest.mark.parametrize('flags', [{}, {'rstrip': True, 'lstrip': True}])
@pytest.mark.parametrize('others', [parsing.TAGS, ()])
def test_tags_are_encoded_and_decoded_however_they_were_added(
  special, flags, others, tmp_path
):
  tokenizer = made()
  rest = [tag for tag in others if tag not in special]
  tokenizer.add_tokens([AddedToken(tag, normalized=False, **flags) for tag in rest])
  tokenizer.add_special_tokens([AddedToken(tag, **flags) for tag in special])
  theirs, ours = saved(tmp_path / 'm', tokenizer)
  ids = theirs.encode(OUTPUT)
  assert ours.encode(OUTPUT) == ours.encode_after(OUTPUT) == ids
  assert {tokenizer.token_to_id(tag) for tag in [*special, *rest]} <= {*ids}
  said = [2, *ids, 1, 0]
  problem = tasks.Problem('1', 'gsm8k', '3+5?', {'answer': '8'}, 'latin')
  (output,) = ours.decode_batch([said])
  assert output == ours.decode(said) == OUTPUT
  assert rules.accuracy(problem, output) == rules.format_reward(problem, output) == 1
  stream = ours.stream()
  assert ''.join(stream(token) for token in said) == OUTPUT
  # A prompt that spells the tags has the model's tokens for them.
  prompt = templates.render('r1_zero', 'so')
  assert ours.prompt_ids('r1_zero', 'so') == theirs.encode(prompt)


CONTROL = ['<|im_start|>', '<|im_end|>', '<|eot|>']


SEEN = ['<tool_call>', '</tool_call>', '<|begin_of_thought|>', '<think>']


def test_only_control_tokens_are_dropped_and_never_encoded(tmp_path):
  tokenizer = made()
  tokenizer.add_special_tokens(CONTROL + SEEN)
  tokenizer.add_tokens(['<|end|>', '    '])
  template = (
    "{% for m in messages %}{{ '<|im_' + 'start|>' + m.role + '    ' + m.content }}"
    '<|im_end|>{% endfor %}<|im_start|>assistant<think>{% if tools %}<tool_call>'
    '{{ messages[0].content.split("<|begin_of_thought|>")[1] }}{% endif %}'
  )
  _, ours = saved(tmp_path / 'm', tokenizer, chat_template=template)
  end = tokenizer.token_to_id('<|eot|>'), tokenizer.token_to_id('<|end|>')
  (tmp_path / 'm/generation_config.json').write_text(json.dumps({'eos_token_id': end}))
  ours = tokenizer_files.open_tokenizer(tmp_path / 'm')
  for token in [*SPECIALS, *CONTROL, '<|end|>']:
    number = tokenizer.token_to_id(token)
    assert ours.decode([37, number, 38]) == ours.decode([37, 38]), token
    assert number not in ours.encode(token), token
  for token in [*SEEN, '    ']:
    number = tokenizer.token_to_id(token)
    assert token in ours.decode([37, number, 38])
    assert ours.encode(token) == [number]


WRITES = {
  'chat_template': '{{ bos_token }}{% for m in messages %}{{ m.content }}'
  '{{ eos_token }}{% endfor %}'
}


@pytest.mark.parametrize(
  ('generation', 'config', 'stops'),
  [
    ([283, 281], 282, (1, 283, 281)),  # config.json does not count
    (None, [282, 283], (1, 282, 283)),
    ({}, 282, (1, 282)),
    (0, 282, (1, 0)),
  ],
)
def test_outputs_end_at_the_tokens_of_transformers(generation, config, stops, tmp_path):
  reference = theirs_of_hub('llama', {'vocab_size': 300})
  reference.config.eos_token_id = config
  reference.save_pretrained(tmp_path / 'm')
  file = tmp_path / 'm/generation_config.json'
  file.unlink(missing_ok=True)
  if generation is not None:
    named = {} if generation == {} else {'eos_token_id': generation}
    file.write_text(json.dumps(named))
  _, ours = saved(tmp_path / 'm', made())
  assert ours.stop_ids == stops
  opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'm')
  given = opened.generation_config.eos_token_id
  # Without any, it ends nowhere, where the older file is better than none.
  if generation != {}:
    assert [*stops[1:]] == (given if isinstance(given, list) else [given])


def test_a_stop_token_of_ordinary_text_gets_a_warning(tmp_path):
  (tmp_path / 'm').mkdir()
  tokenizer = made()
  word = tokenizer.token_to_id('so')
  file = tmp_path / 'm/generation_config.json'
  file.write_text(json.dumps({'eos_token_id': [1, word, 0]}))
  _, ours = saved(tmp_path / 'm', tokenizer)
  (remark,) = ours.remarks
  assert f"ends outputs at token {word}, 'so', which is ordinary text" in remark


def test_a_template_that_uses_an_undefined_token_gets_a_warning(tmp_path):
  _, ours = saved(tmp_path / 'm', made(), {'eos_token': '</s>'}, **WRITES)
  (remark,) = ours.remarks
  assert 'uses bos_token, but neither tokenizer_config.json nor special_' in remark
  _, ours = saved(tmp_path / 'n', made(), **WRITES)
  assert ours.remarks == ()


def test_variables_that_the_template_does_not_use_are_refused(tmp_path):
  template = '{{ enable_thinking }}{{ messages[0].content }}{{ strftime_now("%Y") }}'
  saved(tmp_path / 'm', made(), chat_template=template)
  found = tokenizer_files.open_tokenizer(tmp_path / 'm', {'enable_thinking': 3})
  assert found.prompt(templates.CHAT, 'so').startswith('3so2')
  with pytest.raises(
    chat_template.HubError, match=r'uses \(enable_thinking\), got enable_think$'
  ):
    tokenizer_files.open_tokenizer(tmp_path / 'm', {'enable_think': 3})
  saved(tmp_path / 'n', made())
  with pytest.raises(
    chat_template.HubError, match=r'uses \(none\), got enable_thinking'
  ):
    tokenizer_files.open_tokenizer(tmp_path / 'n', {'enable_thinking': 3})


def template_of(single):
  tokens = [('</s>', 1), ('<s>', 2)]
  return post.TemplateProcessing(single=single, special_tokens=tokens)


AROUND = [
  (template_of('$A </s>'), [], [1]),
  (template_of('<s> $A </s>'), [2], [1]),
  (template_of('<s> $A'), [2], []),
  (template_of('$A'), [], []),
  (post.Sequence([post.ByteLevel(), template_of('<s> $A </s>')]), [2], [1]),
  (post.BertProcessing(('</s>', 1), ('<s>', 2)), [2], [1]),
  (post.RobertaProcessing(('</s>', 1), ('<s>', 2)), [2], [1]),
  (post.ByteLevel(), [], []),
]


@pytest.mark.parametrize(('processor', 'before', 'behind'), AROUND)
def test_prompts_begin_with_bos_and_end_without_eos(
  processor, before, behind, tmp_path
):
  tokenizer = made()
  tokenizer.post_processor = processor
  theirs, ours = saved(tmp_path / 'm', tokenizer, **WRITES)
  prompt = templates.render('plain', 'so')
  ids = theirs.encode(prompt, add_special_tokens=False)
  assert theirs.encode(prompt) == [*before, *ids, *behind]
  assert ours.prompt_ids('plain', 'so') == [*before, *ids]
  assert tokenizer_files.bos_id(tmp_path / 'm') == (before[0] if before else None)
  # A chat template writes its own BOS, and no second one comes before it.
  expected = theirs.apply_chat_template(QUESTION, return_dict=False)
  assert ours.prompt_ids(templates.CHAT, QUESTION[0]['content']) == expected
  assert expected[0] == 2 != expected[1]


def blanks(normalizer, cut):
  """A tokenizer with words of one character, which puts a blank before texts."""
  signs = [*'▁ abcdefghijklmnopqrstuvwxyz:+=0123456789<>/\n', 'U', 'A']
  words = {sign: n for n, sign in enumerate([*SPECIALS, '[/INST]', *signs])}
  tokenizer = tokenizers.Tokenizer(models.BPE(words, [], fuse_unk=True))
  if normalizer is not None:
    tokenizer.normalizer = normalizer
  if cut is not None:
    tokenizer.pre_tokenizer = cut
  tokenizer.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.Fuse()])
  tokenizer.add_special_tokens([*SPECIALS, '[/INST]'])
  return tokenizer


BLANKS = [
  (
    normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]),
    None,
  ),
  (normalizers.Prepend('▁'), pre_tokenizers.Metaspace(prepend_scheme='never')),
  (None, pre_tokenizers.Metaspace(prepend_scheme='always')),
  (None, pre_tokenizers.Metaspace(prepend_scheme='first')),
  (None, pre_tokenizers.Sequence([pre_tokenizers.Metaspace()])),
]


@pytest.mark.parametrize(('normalizer', 'cut'), BLANKS)
@pytest.mark.parametrize('template', ['chat', 'plain'])
def test_outputs_continue_prompts_without_a_leading_space(
  normalizer, cut, template, tmp_path
):
  chat = {'chat_template': '{{ messages[0].content }} [/INST]'}
  tokenizer = blanks(normalizer, cut)
  tokenizer.add_special_tokens(['<think>'])
  theirs, ours = saved(tmp_path / 'm', tokenizer, **chat)
  model = Policy(ModelConfig(), ours, template)
  output = '<think>so</think>'
  prompt, said = model.example_ids('so', output)
  if template == 'chat':
    messages = [{'role': 'user', 'content': 'so'}]
    assert prompt == theirs.apply_chat_template(messages, return_dict=False)
  words = theirs.convert_ids_to_tokens(said)
  blank = [] if template == 'chat' else ['▁']
  assert words == [*blank, '<think>', *'so</think>', '</s>']
  # At the beginning of a text the blank stays.
  assert ours.encode('so') == theirs.encode('so', add_special_tokens=False)
  assert theirs.convert_ids_to_tokens(ours.encode('so')) == ['▁', 's', 'o']


def test_chat_tags_show_the_format_in_the_models_own_template(tmp_path):
  checkpoint(tmp_path / 'm')
  tokenizer = tokenizer_files.open_tokenizer(tmp_path / 'm')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'm')
  messages = [*map(dict, templates.EXAMPLE), {'role': 'user', 'content': '3+5'}]
  expected = theirs.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  assert tokenizer.prompt(templates.CHAT_TAGS, '3+5') == expected
  assert '<think>reasoning process here</think>' in expected
  assert HubConfig(template='chat_tags').template == templates.CHAT_TAGS


def test_chat_answer_opens_the_box_of_the_answer(tmp_path):
  checkpoint(tmp_path / 'm')
  tokenizer = tokenizer_files.open_tokenizer(tmp_path / 'm')
  prompt = tokenizer.prompt('chat_answer', '3+5')
  assert prompt == tokenizer.prompt('chat', '3+5') + 'The answer is \\boxed{'
  # What the model writes after it is an output in the form that the template asks for.
  whole = parsing.opened(prompt) + '8}'
  parsed = parsing.parse(whole, templates.form('chat_answer'))
  assert parsed is not None
  assert parsed.answer == '8'
  assert parsing.remainder(prompt, whole) == '8}'
