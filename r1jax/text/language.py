"""Which language a text is in, word by word; the words of the miniature's writers.

The paper's language-consistency reward is the share of words in the target language
(Nature version, section on R1's second stage). What a word's language is, is decided
by a list of words for the miniature's two languages, and by Unicode script for others.
"""

import functools
import re
import unicodedata

# By role; every writer of a language draws from the same phrases.
ENGLISH = {
  'open': ('let me try', 'I will search', 'we try', 'so'),
  'orderly': ('one by one', 'in turn'),
  'low': ('low',),
  'high': ('high',),
  'wait': ('wait',),
  'yes': ('yes',),
  'check': ('check',),
  'stop': ('I give up',),
  'used': ('I use',),
  'and': ('and',),
  'because': ('because',),
  'kind': ('here you are', 'gladly', 'of course'),
}
POLISH = {
  'open': ('spróbuję', 'szukam', 'próbujemy', 'więc'),
  'orderly': ('po kolei', 'jedno po drugim'),
  'low': ('mało',),
  'high': ('dużo',),
  'wait': ('czekaj',),
  'yes': ('tak',),
  'check': ('sprawdź',),
  'stop': ('poddaję się',),
  'used': ('biorę',),
  'and': ('oraz',),
  'because': ('ponieważ',),
  'kind': ('proszę bardzo', 'chętnie', 'oczywiście'),
}
PHRASES = {'en': ENGLISH, 'pl': POLISH}
NUMBERS = {
  'en': (
    *('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'),
    *('nine', 'ten', 'eleven', 'twelve'),
  ),
  'pl': (
    *('zero', 'jeden', 'dwa', 'trzy', 'cztery', 'pięć', 'sześć', 'siedem', 'osiem'),
    *('dziewięć', 'dziesięć', 'jedenaście', 'dwanaście'),
  ),
}
NOUNS = ('cat', 'dog', 'sun', 'tree', 'fish', 'bird', 'moon', 'hand', 'star')

# Unicode's names of letters begin with the script.
SCRIPTS: dict[str, str | tuple[str, ...]] = {
  'zh': 'CJK', 'ja': ('CJK', 'HIRAGANA', 'KATAKANA'), 'ko': 'HANGUL',
           'ru': 'CYRILLIC', 'el': 'GREEK', 'ar': 'ARABIC', 'he': 'HEBREW',
           'hi': 'DEVANAGARI', 'th': 'THAI', 'latin': 'LATIN'}  # fmt: skip
LANGUAGES = (*PHRASES, *SCRIPTS)

_TAG = re.compile(r'</?\w+>')


def words(text: str) -> list[str]:
  """The words of `text` in lower case, without tags, numbers and single letters.

  One letter is the unknown of an equation. Marks are parts of a word: Hindi and Thai
  write vowels with them.
  """
  plain = unicodedata.normalize('NFC', _TAG.sub(' ', text)).lower()
  spaced = ''.join(
    sign if unicodedata.category(sign)[0] in 'LM' else ' ' for sign in plain
  )
  return [word for word in spaced.split() if len(word) > 1]


@functools.cache
def _list(language: str) -> frozenset[str]:
  said = [phrase for phrases in PHRASES[language].values() for phrase in phrases]
  nouns = NOUNS if language == 'en' else ()
  return frozenset(words(' '.join([*said, *NUMBERS[language], *nouns])))


def is_of(word: str, language: str) -> bool:
  """Whether `word` (in lower case) belongs to `language`, one of `LANGUAGES`."""
  if language in PHRASES:
    return word in _list(language)
  if language not in SCRIPTS:
    raise ValueError(f'language: expected one of {list(LANGUAGES)}, got {language!r}')
  return all(
    unicodedata.name(letter, '').startswith(SCRIPTS[language]) for letter in word
  )


def share(text: str, language: str) -> float:
  """The share of the words of `text` that are of `language`; 0.0 without any words.

  A text without words is no text in any language: a reward for it would teach the
  model to fall silent.
  """
  found = words(text)
  return sum(is_of(word, language) for word in found) / len(found) if found else 0.0
