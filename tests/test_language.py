"""The language of words and texts, counted by hand."""

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.text import language
from r1jax.text.language import LANGUAGES, NOUNS, NUMBERS, PHRASES


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('Let me TRY', ['let', 'me', 'try']),
    ('I give up', ['give', 'up']),  # I could be an unknown, as x is
    ('<think>so\n3x+4=19?20 low</think>', ['so', 'low']),
    ('<answer>tak</answer>', ['tak']),
    ('<think broken', ['think', 'broken']),  # no tag of the form
    ('one-by_one, in2turn', ['one', 'by', 'one', 'in', 'turn']),
    ('x²+½y=10', []),
    ('', []),
    # A word stays one when its marks are letters of their own.
    ('नमस्ते की', ['नमस्ते', 'की']),
    (unicodedata.normalize('NFD', 'spróbuję'), ['spróbuję']),
  ],
)
def test_words_are_letters_in_a_row(text, words):
  assert language.words(text) == words


@pytest.mark.parametrize(
  ('text', 'target', 'share'),
  [
    ('let me try 3+4', 'en', 1),
    ('let me spróbuję 3+4', 'en', 2 / 3),
    ('let me spróbuję 3+4', 'pl', 1 / 3),
    ('PONIEWAŻ 3+4=7', 'pl', 1),
    ('zero', 'en', 1),
    ('zero', 'pl', 1),
    ('elephant wait', 'en', 1 / 2),  # a word of no list
    # no words, no language
    ('', 'en', 0),
    ('3x+4=19', 'en', 0),
    ('<think></think>', 'latin', 0),
    ('我们 wait 因为', 'zh', 2 / 3),
    ('ひらがな カタカナ 漢字 romaji', 'ja', 3 / 4),
    ('ひらがな カタカナ 漢字 romaji', 'zh', 1 / 4),
    ('안녕 세상 hello', 'ko', 2 / 3),
    ('Привет мир hello', 'ru', 2 / 3),
    ('γειά σου hello there', 'el', 1 / 2),
    ('مرحبا بالعالم', 'ar', 1),
    ('שלום hello', 'he', 1 / 2),
    ('नमस्ते दुनिया ok', 'hi', 2 / 3),
    ('สวัสดี hello', 'th', 1 / 2),
    ('zażółć мир', 'latin', 1 / 2),
    ('mіxed', 'latin', 0),  # its і is Cyrillic
    ('mіxed', 'ru', 0),
  ],
)
def test_share_counts_words_of_the_language(text, target, share):
  assert language.share(text, target) == share


@hypothesis.given(strategies.text(), strategies.sampled_from(LANGUAGES))
def test_share_is_a_share_of_any_text(text, target):
  assert 0 <= language.share(text, target) <= 1


def said(name):
  """All words of a language, split at spaces."""
  phrases = [phrase for choices in PHRASES[name].values() for phrase in choices]
  nouns = NOUNS if name == 'en' else ()
  return {word.lower() for phrase in [*phrases, *NUMBERS[name], *nouns]
          for word in phrase.split() if len(word) > 1}  # fmt: skip


def test_zero_alone_is_a_word_of_both_languages():
  assert said('en') & said('pl') == {'zero'}
  for name, other in (('en', 'pl'), ('pl', 'en')):
    for word in said(name):
      assert language.share(word, name) == 1
      assert language.share(word, other) == (word == 'zero')


def test_the_languages_say_the_same_things():
  assert set(PHRASES['en']) == set(PHRASES['pl'])
  assert len(NUMBERS['en']) == len(NUMBERS['pl']) == 13  # 0 to 12
  assert all(PHRASES['en'].values())
  assert all(PHRASES['pl'].values())


def test_an_unknown_language_is_named():
  with pytest.raises(ValueError, match=r"language: expected one of \['en', .*'xx'"):
    language.share('wait', 'xx')
