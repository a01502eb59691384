"""Language of a text, word by word, and the phrases of the miniature's two languages.

The paper's language-consistency reward is the share of words in the target language
(Nature version, section on R1's second stage). For the miniature's English and Polish a
word list decides which language a word belongs to, for all others its Unicode script.
"""

import functools
import re
import unicodedata

# By role. All writers of a language use the same phrases.
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

# The Unicode name of a letter begins with its script.
SCRIPTS: dict[str, str | tuple[str, ...]] = {
  'zh': 'CJK', 'ja': ('CJK', 'HIRAGANA', 'KATAKANA'), 'ko': 'HANGUL',
           'ru': 'CYRILLIC', 'el': 'GREEK', 'ar': 'ARABIC', 'he': 'HEBREW',
           'hi': 'DEVANAGARI', 'th': 'THAI', 'latin': 'LATIN'}  # fmt: skip
LANGUAGES = (*PHRASES, *SCRIPTS)

_TAG = re.compile(r'</?\w+>')


def words(text: str) -> list[str]:
  """Returns the words of `text` in lower case, without tags, numbers, single letters.

  A single letter is the unknown of an equation. Combining marks are part of a word:
  Hindi and Thai write vowels with them.
  """
  plain = unicodedata.normalize('NFC', _TAG.sub(' ', text)).lower()
  spaced = ''.join(
    sign if unicodedata.category(sign)[0] in 'LM' else ' ' for sign in plain
  )
  return [word for word in spaced.split() if len(word) > 1]


@functools.cache
def _list(language: str) -> frozenset[str]:
  phrases = [phrase for group in PHRASES[language].values() for phrase in group]
  nouns = NOUNS if language == 'en' else ()
  return frozenset(words(' '.join([*phrases, *NUMBERS[language], *nouns])))


def is_of(word: str, language: str) -> bool:
  """Returns whether `word`, in lower case, belongs to `language`.

  Raises:
    ValueError: `language` is not one of `LANGUAGES`.
  """
  if language in PHRASES:
    return word in _list(language)
  if language not in SCRIPTS:
    raise ValueError(f'language: expected one of {list(LANGUAGES)}, got {language!r}')
  return all(
    unicodedata.name(letter, '').startswith(SCRIPTS[language]) for letter in word
  )


def share(text: str, language: str) -> float:
  """Returns the share of the words of `text` in `language`; 0.0 for no words.

  A text without words counts as no language: rewarding it would teach the model to
  write no words.
  """
  found = words(text)
  return sum(is_of(word, language) for word in found) / len(found) if found else 0.0
