"""Chat templates give the prompts of `apply_chat_template` in transformers."""

import datetime

import pytest
import tokenizers
import transformers
from hub import checkpoint
from tokenizers import models

from r1jax.hub import chat_template
from r1jax.text import parsing

NAMES = {'bos_token': '<s>', 'eos_token': '</s>', 'think_token': '<think>'}
QUESTION = [{'role': 'user', 'content': '3+5 é'}]
MESSAGES = [
  {'role': 'system', 'content': ' Be brief.\n'},
  {'role': 'user', 'content': 'hi <b>'},
  {'role': 'assistant', 'content': '<think>\nso\n</think>\n\nyo'},
  *QUESTION,
]
# Small ones of our own, each with what a family of published ones relies on.
QWEN = """
{%- if tools %}{{- 'tools: ' ~ tools | tojson }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
  {%- if message.role == 'user' and ns.last == messages|length - 1 %}
    {%- set ns.last = messages|length - 1 - loop.index0 %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content %}
  {%- if '</think>' in content and loop.index0 < ns.last %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
  {%- endif %}
  {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
  {%- endif %}
{%- endif %}"""
SMOLLM = """
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = "/think" if enable_thinking else "/no_think" %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{% generation %}
{% set kept = 1 %}{{ message.content | trim }}{{ eos_token }}
{% endgeneration %}
{{ kept is defined }}
{%- else %}
[{{ message.role }} {{ mode }}] {{ message.content }}
{%- endif %}
{%- endfor %}
{% if xml_tools is none %}none{% elif xml_tools is not defined %}undefined{% endif %}
"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}{{- "You have tools." }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n\\n' }}{%- endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{% continue %}{% endif %}
{%- if message.role not in ('user', 'assistant') %}
{{ raise_exception('only two roles') }}{% endif %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}
{%- if loop.index > 8 %}{% break %}{% endif %}{% endfor %}"""
R1 = """{{bos_token}}{% for m in messages %}{% set said = m['content'] %}
{%- if m['role'] == 'user' %}{{'<User>' + said}}
{%- elif m['role'] == 'assistant' and 'tool_calls' not in m %}
{%- if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}
{{- said + eos_token}}{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{'<Assistant>' + think_token + '\\n'}}{% endif %}"""
JSON = """{{ messages | tojson }} {{ messages[0] | tojson(indent=2, sort_keys=true) }}
{{ messages[-1].content | tojson(ensure_ascii=True) }} {{ tools | tojson }}
{{ messages[0] | tojson(separators=(',', ':')) }} {{ messages[1].content | tojson }}
{{ messages[0] | tojson(true, '\\t') }} {{ '<' | escape }} {{ dict(a=1) | tojson }}"""
NONE = """{{ documents is none }} {{ tools == none }} {{ documents is defined }}|
{{ unknown }} {{ unknown is defined }} {{ cls_token is defined }} {{ joiner }}|
{{ range(3) | list }} {{ messages[0].tool_calls is defined }}
{{ messages[0].get('name', 'x') }}"""


def transformers_writes(source, messages, **variables):
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(models.BPE()), **NAMES
  )
  return tokenizer.apply_chat_template(
    messages,
    chat_template=source,
    tokenize=False,
    add_generation_prompt=True,
    **variables,
  )


@pytest.mark.parametrize('messages', [QUESTION, MESSAGES[1:], MESSAGES])
@pytest.mark.parametrize(
  ('source', 'variables'),
  [
    (QWEN, {}),
    (QWEN, {'enable_thinking': False}),
    (QWEN, {'enable_thinking': True}),
    (SMOLLM, {}),
    (SMOLLM, {'enable_thinking': False, 'xml_tools': None}),
    (LLAMA, {}),
    (LLAMA, {'date_string': '26 Jul 2024', 'bos_token': ''}),
    (MISTRAL, {}),
    (R1, {}),
    (JSON, {}),
    (NONE, {'unknown': [1, {'a': None}]}),
    (NONE, {}),
  ],
)
def test_prompts_are_those_of_transformers(source, variables, messages):
  if source == JSON and len(messages) == 1:
    messages = [*messages, *messages]
  expected = transformers_writes(source, messages, **variables)
  found = chat_template.ChatTemplate(source, NAMES, variables).render(messages)
  assert found == expected


def test_prompts_of_reasoning_models_open_or_skip_thoughts():
  def end(source, **variables):
    template = chat_template.ChatTemplate(source, NAMES, variables)
    return parsing.opened(template.render(QUESTION))

  assert end(QWEN) == ''
  assert end(QWEN, enable_thinking=False) == '<think>\n\n</think>\n\n'
  assert end(R1) == '<think>\n'


def test_a_template_names_the_variables_that_it_uses():
  def reads(source):
    return chat_template.ChatTemplate(source, {}).reads

  assert reads(QWEN) == {
    'messages',
    'tools',
    'add_generation_prompt',
    'enable_thinking',
  }
  assert reads(LLAMA) > {'date_string', 'bos_token'}
  assert reads(SMOLLM) > {'enable_thinking', 'xml_tools'}
  assert reads('{% if %}') == frozenset()


def test_strftime_now_uses_the_given_time():
  source = '{{ strftime_now("%d %b %Y") }}, {{ strftime_now(format="%H:%M") }}'
  time = datetime.datetime(2024, 7, 26, 9, 5)
  template = chat_template.ChatTemplate(source, {}, time=time)
  assert template.render(QUESTION) == '26 Jul 2024, 09:05'


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('enable_thinking=False', 'expected an object in JSON, .*, got .enable_thinking='),
    ('[1]', r"expected an object in JSON, .*, got '\[1\]'"),
    ('{"tools": []}', 'every chat template gets, got tools; remove them'),
    ('{"messages": [], "documents": 1}', 'got documents, messages'),
  ],
)
def test_invalid_variables_are_named(given, message):
  with pytest.raises(
    chat_template.HubError, match=f'chat_template_kwargs: .*{message}'
  ):
    chat_template.read_variables(given)


@pytest.mark.parametrize('source', [QWEN, SMOLLM, LLAMA, MISTRAL])
def test_published_templates_are_written_to_gguf(source):
  chat_template.ChatTemplate(source, NAMES).check_for_gguf()


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('{% if tools is not none %}x{% endif %}', 'the same without tools, documents and'),
    ('{{ think_token }}', 'special tokens other than BOS and EOS for GGUF'),
    ('{{ bos_token + think_token }}', 'other than BOS and EOS for GGUF'),
    ('{{ messages | tojson(sort_keys=true) }}', 'tojson without sort_keys for GGUF'),
    (
      '{% for m in messages %}',
      'writes conversations for GGUF, but .* fix or delete it',
    ),
    ('{{ raise_exception("no") }}', 'but the chat template cannot write this: no'),
  ],
)
def test_templates_that_llama_cpp_renders_differently_are_refused(source, message):
  with pytest.raises(chat_template.HubError, match=f'chat_template: .*{message}'):
    chat_template.ChatTemplate(source, NAMES).check_for_gguf()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub') / 'model'
  checkpoint(folder)
  return folder


def render(source, **names):
  return chat_template.ChatTemplate(source, names).render(MESSAGES)


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
  with pytest.raises(
    chat_template.HubError, match='the chat template cannot write this'
  ):
    render(source)


def test_a_template_may_refuse_messages():
  with pytest.raises(chat_template.HubError, match='no system message, please'):
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
