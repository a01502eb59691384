"""IFEval's 25 kinds of instructions, judged by hand, and what texts amount to."""

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.rewards import ifeval as measures
from r1jax.tasks import Problem, ifeval, instruction_checks, verify
from r1jax.tasks.instruction_checks import CHECKS

HINDI = 'मैं घर जा रहा हूँ और वहाँ खाना खाऊंगा क्योंकि मुझे भूख लगी है।'
ENGLISH = 'the weather is nice today and we are going to the river with our friends'
# By kind: arguments, texts that follow and texts that don't.
CASES: list[tuple[str, dict, tuple[str, ...], tuple[str, ...]]] = [
  (
    'change_case:capital_word_frequency',
    {'capital_frequency': 3, 'capital_relation': 'at least'},
    # A hyphenated word is one, a contraction is two; numbers have no case.
    ('A NEW day for US', 'WELL-KNOWN FACT: NASA', "IT'S 5 PM", '**LOOK** AT ME'),
    ('WELL-KNOWN FACT', 'A new day', 'One Two Three', 'USA 1 2 3', ''),
  ),
  (
    'change_case:capital_word_frequency',
    {'capital_frequency': 2, 'capital_relation': 'less than'},
    ('ONE word', 'none'),
    ('TWO WORDS', 'I AM'),
  ),
  (
    'change_case:english_capital',
    {},
    (ENGLISH.upper(),),
    (
      ENGLISH,
      '12 + 3',
      ENGLISH.upper() + ' x',
      'ICH GEHE HEUTE NACH HAUSE UND ESSE DANN ETWAS.',
    ),
  ),
  (
    'change_case:english_lowercase',
    {},
    (ENGLISH, f'1. {ENGLISH}!'),
    (ENGLISH.upper(), f'{ENGLISH} I', 'ich gehe heute nach hause und esse dann etwas.'),
  ),
  (
    'combination:repeat_prompt',
    {'prompt_to_repeat': 'Write a poem. '},
    ('Write a poem. Roses are red.', '\nwrite a POEM.'),
    ('Sure! Write a poem.', 'Write  a poem.', 'A poem'),
  ),
  (
    'combination:two_responses',
    {},
    ('a\n******\nb', '******a******b******'),
    ('a', 'a******a', 'a******b******c', 'a************b', 'a*****b'),
  ),
  (
    'detectable_content:number_placeholders',
    {'num_placeholders': 2},
    ('[name] of [city]', '[a][b][c]', '[] and []'),
    ('[name]', '[a\n] [b]', '[[name]]', '] a [ b ['),
  ),
  (
    'detectable_content:postscript',
    {'postscript_marker': 'P.S.'},
    ('Bye.\nP.S. I forgot.', 'p. s. no', 'P.P.S. no'),
    ('PS I forgot', 'P.S I forgot'),
  ),
  (
    'detectable_content:postscript',
    {'postscript_marker': 'P.P.S'},
    ('P.P.S I forgot', 'p. p. s', 'P.P.S. x'),
    ('P.S. I forgot', 'PPS'),
  ),
  (
    'detectable_format:constrained_response',
    {},
    ('My answer is yes.', 'Well: My answer is maybe. Or so.'),
    ('my answer is no.', 'My answer is yes', 'Yes.'),
  ),
  (
    'detectable_format:json_format',
    {},
    ('{"a": [1, 2]}', '```json\n{"a": null}\n```', '```\n[]\n```', '"text"'),
    ("{'a': 1}", 'Here: {"a": 1}', '```yaml\na: 1\n```', '[' * 10**5),
  ),
  (
    'detectable_format:multiple_sections',
    {'section_spliter': 'Day', 'num_sections': 2},
    ('Day 1\nwalk\nDay 2\nrest', 'Day 1 Day2 Day 3'),
    ('Day 1', 'DAY 1 DAY 2', 'Day one, Day two'),
  ),
  (
    'detectable_format:number_bullet_lists',
    {'num_bullets': 2},
    ('* a\n* b', '- a\n\n  - b', 'Two:\n* a\n- b\nend', '*a*\n* b'),
    ('* a', '* a\n* b\n* c', '1. a\n2. b', '** a\n** b', 'a * b\nc - d'),
  ),
  (
    'detectable_format:number_highlighted_sections',
    {'num_highlights': 2},
    ('*a* and *b*', '**a** and *b*', '* a * b *c*'),
    ('*a*', '**a**', '* a\n* b', '** ** *  *', '*a\nb* *c*'),
  ),
  (
    'detectable_format:title',
    {},
    ('<<poem of joy>>\nRoses', 'a <<b>> c <<d>>'),
    ('<poem>', '<<>>', '<< >>', '<<a\nb>>', '>>a<<'),
  ),
  (
    'keywords:existence',
    {'keywords': ['cat', 'dog']},
    ('A dog, a CAT', 'dogma and concatenate'),
    ('a cat', ''),
  ),
  (
    'keywords:forbidden_words',
    {'forbidden_words': ['rock', 'die']},
    ('rocks and diet', 'stone'),
    ('a Rock.', 'to DIE for', 'rock-hard'),
  ),
  (
    'keywords:frequency',
    {'keyword': 'war', 'frequency': 2, 'relation': 'at least'},
    ('War and war', 'warwar', 'award after award'),
    ('war', 'peace'),
  ),
  (
    'keywords:frequency',
    {'keyword': 'the', 'frequency': 2, 'relation': 'less than'},
    ('the cat', 'a cat'),
    ('The cat there',),
  ),
  (
    'keywords:letter_frequency',
    {'letter': 'q', 'let_frequency': 2, 'let_relation': 'at least'},
    ('Quick q', 'qq'),
    ('quick', ''),
  ),
  (
    'keywords:letter_frequency',
    {'letter': '#', 'let_frequency': 4, 'let_relation': 'at least'},
    ('#one #two ##', '####'),
    ('###', 'no letter at all'),
  ),
  ('language:response_language', {'language': 'hi'}, (HINDI, '12 + 3'), (ENGLISH,)),
  (
    'language:response_language',
    {'language': 'de'},
    ('Ich gehe heute nach Hause und esse dann etwas.',),
    (ENGLISH, HINDI),
  ),
  (
    'length_constraints:nth_paragraph_first_word',
    {'num_paragraphs': 2, 'nth_paragraph': 2, 'first_word': 'weekend'},
    ('One.\n\nWeekend plans', 'One.\ntwo\n\n"weekend, at last'),
    ('Weekend\n\nplans', 'a\n\nweekend\n\nb', 'One.\nWeekend', 'a\n\nweekends'),
  ),
  (
    'length_constraints:number_paragraphs',
    {'num_paragraphs': 2},
    ('a\n\n***\n\nb', '***\na\n***\nb\n***', 'a *** b'),
    ('a', 'a\n\nb', 'a***b***c', 'a******b'),
  ),
  (
    'length_constraints:number_sentences',
    {'num_sentences': 3, 'relation': 'at least'},
    ('One. Two! Three?', 'Dr. Smith came. He saw. It was 3.5 m.'),
    ('Dr. Smith came. He saw 3.5 m.', 'One\nTwo\nThree'),
  ),
  (
    'length_constraints:number_sentences',
    {'num_sentences': 2, 'relation': 'less than'},
    ('Mr. Brown left at 5 p.m.', 'one'),
    ('He left. She stayed.',),
  ),
  (
    'length_constraints:number_words',
    {'num_words': 4, 'relation': 'at least'},
    ('one two three four', "I don't know", 'well-known 1 2'),
    ('one, two; three', '- - - - -'),
  ),
  ('punctuation:no_comma', {}, ('a; b', 'a、b'), ('a, b', ',')),
  (
    'startend:end_checker',
    {'end_phrase': 'Peace!'},
    ('Love and peace!', '"Peace!"', 'Peace!\n'),
    ('Peace', 'Peace! Bye.', ''),
  ),
  (
    'startend:quotation',
    {},
    ('"all of it"', ' "a" and "b"\n'),
    ('"open', '“all”', '"', "'all'"),
  ),
]


Instruction = tuple[str, dict[str, Any]]
NO_COMMA: Instruction = ('punctuation:no_comma', {})
TITLE: Instruction = ('detectable_format:title', {})


@pytest.mark.parametrize(('name', 'arguments', 'follow', 'others'), CASES)
def test_texts_are_judged_as_by_a_person(name, arguments, follow, others):
  check = CHECKS[name]
  assert [text for text in follow if not check(text, **arguments)] == []
  assert [text for text in others if check(text, **arguments)] == []


def test_every_kind_is_judged():
  assert {name for name, *_ in CASES} == CHECKS.keys()
  assert len(CHECKS) == 25  # the paper's Table 1


def judged(text, *pairs):
  names, kwargs = zip(*pairs, strict=True)
  return ifeval.verdicts(text, json.dumps(names), kwargs)


def test_a_loose_verdict_forgives_what_models_put_around_an_answer():
  lowercase: Instruction = ('change_case:english_lowercase', {})
  answer = f'Sure, here it is:\n{ENGLISH}\nHope it helps!'
  assert judged(answer, lowercase) == ((False,), (True,))
  assert judged(f'Sure:\n{ENGLISH}\n{ENGLISH} I', lowercase) == ((False,), (True,))
  quoted: Instruction = ('startend:quotation', {})
  assert judged('**"all of it"**', quoted) == ((False,), (True,))
  assert judged('Well, "a" it is', quoted) == ((False,), (False,))


def test_each_instruction_may_be_followed_by_another_variant():
  # Without its first line the text has no comma, and with it a title.
  assert judged('<<a, b>>\nc', NO_COMMA, TITLE) == ((False, True), (True, True))


def test_variants_are_those_of_the_paper():
  # Section 2.2: without the first line, the last line, both, and font modifiers.
  assert ifeval.variants('*a*\nb\nc') == [
    *('*a*\nb\nc', 'b\nc', '*a*\nb', 'b'),
    *('a\nb\nc', 'a\nb'),
  ]


def test_arguments_belong_to_instructions_by_position():
  # As in the prompt with key 1040, which has one kind twice.
  def pair(frequency, relation):
    arguments = {'capital_frequency': frequency, 'capital_relation': relation}
    return 'change_case:capital_word_frequency', arguments

  pairs = pair(1, 'at least'), pair(3, 'less than')
  assert judged('ONE', *pairs).strict == (True, True)
  assert judged('none', *pairs).strict == (False, True)
  assert judged('ONE TWO THREE', *pairs).strict == (True, False)


@pytest.mark.parametrize('text', ['', ' \n'])
def test_an_empty_text_follows_nothing(text):
  assert judged(text, NO_COMMA) == ((False,), (False,))


def problem(*pairs):
  names, kwargs = zip(*pairs, strict=True)
  truth = {
    'answer': json.dumps(names),
    'verify': 'r1jax.tasks.ifeval:follows',
    'details': {'kwargs': list(kwargs)},
  }
  return Problem('ifeval:1', 'data', 'Write.', truth, form='text')


def test_a_prompt_is_followed_if_all_its_instructions_are():
  one = problem(NO_COMMA, TITLE)
  assert verify(one, '<<a>> b')
  assert not verify(one, '<<a>>, b')
  assert not verify(one, 'b')


def test_what_follows_the_thoughts_is_judged():
  one = problem(NO_COMMA, TITLE)
  output = '<think>well, hmm</think>\n\nfirst, this\n<<a>> b'
  assert measures.prompt_loose(one, output) == 1
  assert measures.instruction_strict(one, output) == 1  # has a title and a comma
  assert measures.instruction_loose(one, output) == 2
  tagged = '<think>a, b</think> <answer><<a>></answer>'
  assert measures.instruction_strict(one, tagged) == 2
  assert measures.instruction_loose(one, '<think><<a>> no end') == 0


# A quadratic search takes minutes for so many characters.
MANY = 10**5
REPEATED: list[tuple[str, str, dict, bool]] = [
  (
    '[' * MANY,
    'detectable_content:number_placeholders',
    {'num_placeholders': 1},
    False,
  ),
  (
    '[]' * MANY,
    'detectable_content:number_placeholders',
    {'num_placeholders': MANY},
    True,
  ),
  ('\n' * MANY, 'detectable_format:number_bullet_lists', {'num_bullets': 0}, True),
  ('\n- ' * MANY, 'detectable_format:number_bullet_lists', {'num_bullets': MANY}, True),
  (
    '*' * MANY,
    'detectable_format:number_highlighted_sections',
    {'num_highlights': 1},
    False,
  ),
  ('<' * MANY, 'detectable_format:title', {}, False),
  (' ' * MANY, 'detectable_content:postscript', {'postscript_marker': 'P.P.S'}, False),
  ('[' * MANY, 'detectable_format:json_format', {}, False),
  ('"' * MANY, 'startend:quotation', {}, True),
  (
    'Go! ' * 10**4,
    'length_constraints:number_sentences',
    {'num_sentences': 10**4, 'relation': 'at least'},
    True,
  ),
  ('a@' * MANY, 'language:response_language', {'language': 'hi'}, False),
]


@pytest.mark.parametrize(('text', 'name', 'arguments', 'verdict'), REPEATED)
def test_long_repetitions_are_judged(text, name, arguments, verdict):
  assert CHECKS[name](text, **arguments) == verdict


@hypothesis.given(
  strategies.text(max_size=80) | strategies.text('[]<>*-"\n .,!?#Day1Pp.S{}`'),
  strategies.sampled_from(CASES),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_no_text_raises(text, case):
  name, arguments, *_ = case
  found = judged(text, (name, arguments))
  assert found.strict <= found.loose  # what is followed strictly is followed loosely


def test_a_mixed_text_gets_the_same_language_each_time():
  # langdetect draws at random: unseeded, 23 of 60 runs said English, the others Somali.
  text = 'ok ciao bello and good day'
  check = instruction_checks.language
  assert len({check(text, language='en') for _ in range(20)}) == 1
