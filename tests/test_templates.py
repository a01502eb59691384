"""Prompt templates, against the text of the paper."""

import pytest

from r1jax.text import parsing, templates


def test_render_puts_the_question_into_the_template():
  assert (
    templates.render('plain', 'make 5 from 2 3') == 'User: make 5 from 2 3\nAssistant:'
  )


def test_r1_zero_template_is_the_papers():
  # The words of Table 1 (2501.12948v1), where 'prompt' stands for the question.
  table = """
    A conversation between User and Assistant. The user asks a question, and the
    Assistant solves it. The assistant first thinks about the reasoning process in the
    mind and then provides the user with the answer. The reasoning process and answer
    are enclosed within <think> </think> and <answer> </answer> tags, respectively,
    i.e., <think> reasoning process here </think> <answer> answer here </answer>.
    User: prompt. Assistant:
  """
  assert templates.render('r1_zero', 'prompt') == ' '.join(table.split())


def test_render_leaves_braces_of_a_question_alone():
  question = 'is {question} in {x} or {}?'
  assert templates.render('plain', question) == f'User: {question}\nAssistant:'


def test_a_plain_template_takes_no_conversation():
  question = [{'role': 'user', 'content': 'a'}, {'role': 'user', 'content': 'b'}]
  with pytest.raises(
    ValueError, match=r"chat, chat_tags, .* several messages, got 'plain'"
  ):
    templates.render('plain', question)


def test_render_suggests_the_template_that_was_meant():
  with pytest.raises(ValueError, match="got 'r1-zero'; did you mean 'r1_zero'"):
    templates.render('r1-zero', 'q')


def test_a_chat_may_begin_with_an_example_of_the_format():
  said = templates.EXAMPLE[1]['content']
  parsed = parsing.parse(said)
  assert parsed is not None  # what is shown is what a reward asks for
  assert parsed.answer == '10'
  system, user = ({'role': role, 'content': role} for role in ('system', 'user'))
  assert templates.with_request('chat', [system, user]) == [system, user]
  assert templates.with_request('chat_tags', [user]) == [*templates.EXAMPLE, user]
  assert templates.with_request('chat_tags', [system, user]) == [
    system,
    *templates.EXAMPLE,
    user,
  ]


def test_a_chat_may_end_with_a_request_for_a_box():
  system, user = ({'role': role, 'content': role} for role in ('system', 'user'))
  asked = templates.with_request('chat_boxed', [system, user])
  assert asked == [system, {**user, 'content': f'user\n\n{templates.BOXED}'}]
  assert user['content'] == 'user'  # unchanged
  assert parsing.last_box(templates.BOXED) == ''
  assert templates.form('chat_boxed') == 'boxed'
  asked = templates.with_request('chat_code', [system, user])
  assert asked == [system, {**user, 'content': f'user\n\n{templates.CODE}'}]
  assert templates.form('chat_code') == 'code'
  assert {templates.form(name) for name in ('chat', 'chat_tags', 'plain')} == {'tags'}


def test_a_system_message_begins_chats_that_have_none():
  def chat(messages):
    return ' '.join(message['content'] for message in messages)

  begun = templates.beginning_with('Be brief.', chat)
  user = {'role': 'user', 'content': '1+1?'}
  assert begun([user]) == 'Be brief. 1+1?'
  assert begun([{'role': 'system', 'content': 'Be long.'}, user]) == 'Be long. 1+1?'
