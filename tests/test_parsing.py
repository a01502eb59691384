"""Outputs taken apart, by hand and against the pattern that defines them."""

import re

import hypothesis
import pytest
from examples import PIECES
from hypothesis import strategies

from r1jax.text import parsing


@pytest.mark.parametrize(
  ('output', 'parts'),
  [
    ('<think>a</think><answer>b</answer>', ('a', '', 'b')),
    (' \n<think> a\nb </think>\n\n<answer> c </answer>\n', ('a\nb', '', 'c')),
    ('<think></think><answer></answer>', ('', '', '')),
    ('<think>1 < 2 > <b></think><answer><answer</answer>',
     ('1 < 2 > <b>', '', '<answer')),
    ('<think>a</think>\nso it is b:\n<answer>b</answer>', ('a', 'so it is b:', 'b')),
  ],
)  # fmt: skip
def test_parse_gives_the_parts(output, parts):
  assert parsing.parse(output) == parts


@pytest.mark.parametrize(
  'output',
  [
    '',
    'b',
    '<think>a</think>',
    '<answer>b</answer>',
    '<think>a</think><answer>b',
    '<think>a<answer>b</answer>',
    'a</think><answer>b</answer>',
    '<think>a</think>b</answer>',
    'so <think>a</think><answer>b</answer>',
    '<think>a</think><answer>b</answer>so',
    '<answer>b</answer><think>a</think>',
    '<think>a<answer>b</think></answer>',
    '<think>a<answer>b</answer></think>',
    '<think>a<think>b</think><answer>c</answer>',
    '<think>a</think><think>b</think><answer>c</answer>',
    '<think>a</think><answer>b</answer><answer>c</answer>',
    '<think>a</think><answer><answer>b</answer></answer>',
    '<THINK>a</THINK><ANSWER>b</ANSWER>',
    '<think >a</think><answer>b</answer>',
    '<think>a< /think><answer>b</answer>',
  ],
)
def test_parse_takes_nothing_else(output):
  assert parsing.parse(output) is None


@hypothesis.given(
  strategies.lists(PIECES, max_size=12).map(''.join) | strategies.text()
)
def test_parse_agrees_with_the_pattern_that_defines_it(output):
  # Each part is text in which no tag begins; slow on long garbage, plain to read.
  part = r'((?:(?!</?think>|</?answer>).)*)'
  pattern = rf'\s*<think>{part}</think>{part}<answer>{part}</answer>\s*'
  match = re.fullmatch(pattern, output, re.DOTALL)
  expected = match and tuple(found.strip() for found in match.groups())
  assert parsing.parse(output) == expected


OWN = '<think>\nhm</think>\n<answer>8</answer>'


REST, ANSWER = 'hm</think>\n<answer>8</answer>', '<answer>8</answer>'


@pytest.mark.parametrize(
  ('prompt', 'opening', 'left'),
  [
    ('so?<think>', '<think>', REST),
    ('so?<think>\n', '<think>\n', REST),
    ('so?<think>\n\n</think>\n\n', '<think>\n\n</think>\n\n', ANSWER),
    ('so?<think></think>', '<think></think>', ANSWER),
    ('so?<think>hm</think>', '', OWN),
    ('so?<think></think>then', '', OWN),
    ('<think> so?', '', OWN),
    ('so?', '', OWN),
  ],
)
def test_a_prompt_may_open_or_skip_the_thoughts(prompt, opening, left):
  assert parsing.opened(prompt) == opening
  assert parsing.remainder(prompt, OWN) == left
  assert parsing.remainder(prompt, left) == left


@pytest.mark.parametrize(
  ('output', 'shown'),
  [
    ('<think>a</think>\nso:\n<answer>b</answer>', 'so:\nb'),
    ('<think>a</think> b', 'b'),
    ('<think>a</think>so<answer>b</answer>c', 'so b c'),
    ('<think>a', ''),
    ('b', ''),
  ],
)
def test_visible_is_what_follows_the_thoughts(output, shown):
  assert parsing.visible(output) == shown


@pytest.mark.parametrize(
  'garbage', ['<think>', '<think></think><answer>', '<', ' ', '</answer>', '<think> ']
)
def test_parse_is_quick_on_long_garbage(garbage):
  # A megabyte: quadratic time would take hours, linear takes milliseconds.
  assert parsing.parse(garbage * (1_000_000 // len(garbage))) is None


@pytest.mark.parametrize(
  'output',
  [
    'no, wait',
    'Wait.',
    'let me CHECK:8',
    'that is a mistake',
    'czekaj!',
    'Sprawdź 3+5',
    'SPRAWDŹ',
    'to błąd',
    '<think>verify</think>',
    'check16',
  ],
)
def test_reflective_words_are_found_in_both_languages(output):
  assert parsing.is_reflective(output)


@pytest.mark.parametrize(
  'output', ['', 'no', 'nie', 'yes 3+5=8. no', 'await', 'checkers', 'zabłądź', '3*2']
)
def test_a_plain_no_or_a_part_of_a_word_is_not_reflective(output):
  assert not parsing.is_reflective(output)


def test_the_papers_reflective_terms_are_all_counted():
  terms = 'wait mistake however but retry error verify wrong evaluate check'
  assert set(terms.split()) <= parsing.REFLECTIVE


@pytest.mark.parametrize(
  ('text', 'content'),
  [
    ('so \\boxed{4}', '4'),
    ('\\boxed{1}\n\nno, \\boxed{2}', '2'),
    ('\\boxed{\\frac{1}{2}}', '\\frac{1}{2}'),
    ('\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'),
    ('\\boxed{\\left\\{ x \\right.}', '\\left\\{ x \\right.'),  # an escaped brace
    ('\\boxed{\\boxed{3}}', '\\boxed{3}'),
    ('\\fbox{3}', '3'),
    ('\\boxed {17}', '17'),
    ('\\boxed 2$', '2'),
    ('\\boxed{7} and \\boxed{8', '7'),  # cut off
    ('\\boxed{}', ''),
    ('\\boxes{4}', None),
    ('\\boxed{4', None),
    ('4', None),
  ],
)
def test_the_content_of_the_last_complete_box(text, content):
  assert parsing.last_box(text) == content


@pytest.mark.parametrize(
  ('text', 'parts', 'fault'),
  [
    ('<think>2+2</think>So \\boxed{4}.', ('2+2', 'So \\boxed{4}.', '4'), ''),
    ('So \\boxed{4}.', ('', 'So \\boxed{4}.', '4'), ''),
    ('2+2</think>\\boxed{4}', ('2+2', '\\boxed{4}', '4'), ''),
    ('<think>\\boxed{4}', None, 'thoughts'),  # they never end
    ('<think>\\boxed{4}</think>It is 4.', None, 'answer'),  # none after them
    ('It is <answer>4</answer>', None, 'answer'),
  ],
)
def test_a_boxed_output_needs_a_box_after_its_thoughts(text, parts, fault):
  assert parsing.parse(text, 'boxed') == parts
  assert parsing.fault(text, 'boxed') == fault


@pytest.mark.parametrize(
  ('text', 'parts', 'fault'),
  [
    ('Add.\nAnswer: 4', ('', 'Add.\nAnswer: 4', '4'), ''),
    ('<think>Answer: 3</think>\nAnswer: 4\n', ('Answer: 3', 'Answer: 4', '4'), ''),
    ('Answer: 3\n**ANSWER:** $4$.', ('', 'Answer: 3\n**ANSWER:** $4$.', '$4$.'), ''),
    ('**Final answer : 4**', ('', '**Final answer : 4**', '4'), ''),
    ('Answer: 4\nAnswer:', ('', 'Answer: 4\nAnswer:', '4'), ''),  # cut off
    ('<think>Answer: 4', None, 'thoughts'),
    ('Answer 4', None, 'answer'),
    ('Answer:\n4', None, 'answer'),
    ('<answer>4</answer>', None, 'answer'),
  ],
)
def test_a_line_says_the_answer_after_the_thoughts(text, parts, fault):
  assert parsing.parse(text, 'line') == parts
  assert parsing.fault(text, 'line') == fault


@pytest.mark.parametrize(
  ('text', 'code', 'fault'),
  [
    ('So:\n```python\nx = 1\n```', 'x = 1\n', ''),
    ('```\nx = 1\n```\nbetter\n```py\nx = 2\n```\nDone.', 'x = 2\n', ''),
    ('<think>```\nx = 1\n```</think>```\nx = 2\n```', 'x = 2\n', ''),
    ('```\n```', '', ''),
    ('  ```python title="a"\nx\n  ```  ', 'x\n', ''),
    ('````md\n```python\nx\n```\n````', '```python\nx\n```\n', ''),
    ('```\nx = "```"\n```', 'x = "```"\n', ''),  # not at the beginning of a line
    ('```\nx = 1\n```\n```\nx = 2', 'x = 1\n', ''),  # the second is cut off
    ('```python\nx = 1', None, 'answer'),
    ('`x = 1`', None, 'answer'),
    ('``` x ```', None, 'answer'),
    ('x = 1', None, 'answer'),
    ('<think>```\nx\n```', None, 'thoughts'),
  ],
)
def test_the_last_block_of_code_is_the_program(text, code, fault):
  found = parsing.parse(text, 'code')
  assert (found and found.answer) == code
  assert parsing.fault(text, 'code') == fault


@pytest.mark.parametrize('text', ['```\n', '```x\n', '`', '```', 'a\n', ' ```\nb\n'])
def test_many_blocks_take_linear_time(text):
  assert parsing.last_block(text * (1_000_000 // len(text))) in ('', 'b\n', None)


@pytest.mark.parametrize('text', ['answer ', 'answer', 'answer *', 'answer:\n', ' *\n'])
def test_many_lines_take_linear_time(text):
  assert parsing.last_line(text * (1_000_000 // len(text))) is None


@pytest.mark.parametrize(
  ('text', 'parts', 'fault'),
  [
    (' So it is. \n', ('', 'So it is.', 'So it is.'), ''),
    ('<think>2+2</think>\n\n4', ('2+2', '4', '4'), ''),
    ('2+2</think> 4', ('2+2', '4', '4'), ''),
    ('<think>2+2</think> <answer> 4 </answer>', ('2+2', '4', '4'), ''),
    ('<think>2+2', None, 'thoughts'),
    ('', ('', '', ''), ''),
  ],
)
def test_all_that_follows_the_thoughts_is_the_answer_of_a_text(text, parts, fault):
  assert parsing.parse(text, 'text') == parts
  assert parsing.fault(text, 'text') == fault


@pytest.mark.parametrize(
  ('text', 'fault'),
  [
    ('<think>a</think><answer>4</answer>', ''),
    ('<think>a <answer>4</answer>', 'thoughts'),
    ('<think>a</think>4', 'answer'),
    ('<think>a</think><answer>4', 'answer'),
    ('\\boxed{4}', 'answer'),
    ('<think>a</think><answer>4</answer> so', 'form'),
    ('a</think><answer>4</answer>', 'form'),
  ],
)
def test_what_an_output_with_tags_lacks_is_named(text, fault):
  assert parsing.fault(text) == fault
  assert (parsing.parse(text) is None) == bool(fault)


def test_many_open_boxes_take_linear_time():
  assert parsing.last_box('\\boxed{' * 200_000) is None
