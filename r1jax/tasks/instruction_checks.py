"""The 25 kinds of instructions of IFEval, each as a check of a text.

`CHECKS` has a function (text, **arguments) -> bool by the name of each kind. Arguments
have their names in the published file, and meanings are those of Zhou et al. (2023,
arXiv 2311.07911) and of their evaluation, where the paper leaves one open: a keyword
may be part of a word, a forbidden word may not; a bullet begins with * or -.

Every check takes linear time, never raises on a text, and gives the same result again.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence

import langdetect
import punkt

Check = Callable[..., bool]  # (text, **arguments)

langdetect.DetectorFactory.seed = 0  # its results are random otherwise

OPTIONS = ('My answer is yes.', 'My answer is no.', 'My answer is maybe.')
# Words as the Penn Treebank has them: punctuation is none, IT'S and DON'T are two.
_CLITIC = r"n't\b|'(?:s|m|d|ll|re|ve)\b"
_TOKEN = re.compile(
  rf'{_CLITIC}|(?:(?!--|\.\.|``|{_CLITIC})[^\s,;:?!()\[\]{{}}"“”«»‘’<>@#$%&…])+',
  re.IGNORECASE,
)
_BULLET = re.compile(r'^[^\S\n]*(?:\*[^*]|-)', re.MULTILINE)
_HIGHLIGHT = re.compile(r'\*[^\n*]*\*'), re.compile(r'\*\*[^\n*]*\*\*')
_FENCE = re.compile(r'(?:```(?:json|Json|JSON)?)?(.*?)(?:```)?', re.DOTALL)
_FIRST_WORD = re.compile(r"'*\"*([^.,?!'\"]*)")


def _related(count: int, relation: str, threshold: int) -> bool:
  """Returns whether a count is 'less than' or 'at least' the threshold."""
  return count < threshold if relation == 'less than' else count >= threshold


def _occurrences(keyword: str, text: str) -> int:
  """Returns how often a keyword is in a text, in any case, also inside words."""
  return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _is_in(text: str, language: str) -> bool:
  """Returns whether a text is in a language of ISO 639-1, by langdetect.

  A text in which no language can be found, such as one of digits, is in any.
  """
  try:
    return langdetect.detect(text) == language
  except langdetect.LangDetectException:
    return True


@functools.cache
def _sentences() -> punkt.PunktSentenceTokenizer:
  """Returns NLTK's tokenizer of English sentences (Kiss and Strunk, 2006)."""
  return punkt.PunktSentenceTokenizer(punkt.load_model('english'))


def _parts(text: str, divider: str) -> list[str] | None:
  """Returns what dividers separate; None if nothing is between two of them."""
  parts = [part.strip() for part in text.split(divider)]
  if not all(parts[1:-1]):
    return None
  return [part for part in parts if part]


def keywords(text: str, *, keywords: Sequence[str]) -> bool:
  """Returns whether a text has each keyword."""
  return all(_occurrences(keyword, text) for keyword in keywords)


def keyword_frequency(
  text: str, *, keyword: str, frequency: int, relation: str
) -> bool:
  """Returns whether a text has a keyword as often as it should."""
  return _related(_occurrences(keyword, text), relation, frequency)


def no_forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
  """Returns whether a text has none of these as a whole word, in any case."""
  return not any(
    re.search(rf'\b{re.escape(word)}\b', text, re.IGNORECASE)
    for word in forbidden_words
  )


def letter_frequency(
  text: str, *, letter: str, let_frequency: int, let_relation: str
) -> bool:
  """Returns whether a text has a character, in any case, as often as it should.

  Of two prompts the character is # or !, which the authors' program replaces by a
  random letter.
  """
  return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def language(text: str, *, language: str) -> bool:
  """Returns whether a text is in a language of ISO 639-1."""
  return _is_in(text, language)


def sentences(text: str, *, num_sentences: int, relation: str) -> bool:
  """Returns whether a text has as many sentences as it should."""
  return _related(len(_sentences().tokenize(text)), relation, num_sentences)


def words(text: str, *, num_words: int, relation: str) -> bool:
  """Returns whether a text has as many words as it should; don't are two."""
  return _related(len(re.findall(r'\w+', text)), relation, num_words)


def paragraphs(text: str, *, num_paragraphs: int) -> bool:
  """Returns whether *** separates exactly so many paragraphs."""
  parts = _parts(text, '***')
  return parts is not None and len(parts) == num_paragraphs


def first_word(
  text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
  """Returns whether empty lines separate so many paragraphs, and how the n-th begins.

  Its first word counts in any case, without quotation marks and what follows
  punctuation.
  """
  parts = [part.split() for part in text.split('\n\n')]
  found = sum(bool(part) for part in parts)
  if found != num_paragraphs or nth_paragraph > found or not parts[nth_paragraph - 1]:
    return False
  first = _FIRST_WORD.match(parts[nth_paragraph - 1][0])
  return first is not None and first[1].lower() == first_word.lower()


def placeholders(text: str, *, num_placeholders: int) -> bool:
  """Returns whether a text has so many placeholders or more, such as [address]."""
  closed = (part for line in text.split('\n') for part in line.split(']')[:-1])
  return sum('[' in part for part in closed) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
  """Returns whether a text has a marker such as P.S., in any case, also as P. S."""
  marker = re.escape(postscript_marker.strip()).replace(r'\.', r'\.\s?')
  return bool(re.search(marker, text, re.IGNORECASE))


def bullets(text: str, *, num_bullets: int) -> bool:
  """Returns whether exactly so many lines begin with * or -."""
  return len(_BULLET.findall(text)) == num_bullets


def one_of_the_options(text: str) -> bool:
  """Returns whether a text has one of OPTIONS."""
  return any(option in text for option in OPTIONS)


def highlights(text: str, *, num_highlights: int) -> bool:
  """Returns whether so many parts or more are *highlighted* or **highlighted**."""
  found = [part for pattern in _HIGHLIGHT for part in pattern.findall(text)]
  return sum(bool(part.strip('*').strip()) for part in found) >= num_highlights


def sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
  """Returns whether a text has so many headings or more, such as SECTION 1."""
  heading = rf'{re.escape(section_spliter.strip())}\s?\d+'
  return len(re.findall(heading, text)) >= num_sections


def json_format(text: str) -> bool:
  """Returns whether a text is JSON, also within ``` of Markdown."""
  inside = _FENCE.fullmatch(text.strip())
  assert inside is not None  # it matches any text
  try:
    json.loads(inside[1])
  except (ValueError, RecursionError):
    return False
  return True


def title(text: str) -> bool:
  """Returns whether a line has a title such as <<poem of joy>>."""
  for line in text.split('\n'):
    begin, end = line.find('<<'), line.rfind('>>')
    # The outermost brackets of a line, which have something between them.
    enclosed = line[begin : end + 2].lstrip('<').rstrip('>').strip()
    if 0 <= begin < end and enclosed:
      return True
  return False


def two_responses(text: str) -> bool:
  """Returns whether ****** separates two different texts."""
  parts = _parts(text, '******')
  return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
  """Returns whether a text begins with the prompt, in any case."""
  return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, *, end_phrase: str) -> bool:
  """Returns whether a text, maybe in quotation marks, ends with a phrase."""
  return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
  """Returns whether a text has as many words in capital letters as it should.

  They are counted as by NLTK's tokenizer, but for words that it splits, as CANNOT.
  """
  found = sum(word.isupper() for word in _TOKEN.findall(text))
  return _related(found, capital_relation, capital_frequency)


def english_capitals(text: str) -> bool:
  """Returns whether a text is in English, without a lowercase letter."""
  return text.isupper() and _is_in(text, 'en')


def english_lowercase(text: str) -> bool:
  """Returns whether a text is in English, without a capital letter."""
  return text.islower() and _is_in(text, 'en')


def no_comma(text: str) -> bool:
  """Returns whether a text has no comma."""
  return ',' not in text


def quotation(text: str) -> bool:
  """Returns whether a text is in double quotation marks."""
  text = text.strip()
  return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: dict[str, Check] = {
  'change_case:capital_word_frequency': capital_words,
  'change_case:english_capital': english_capitals,
  'change_case:english_lowercase': english_lowercase,
  'combination:repeat_prompt': repeats_prompt,
  'combination:two_responses': two_responses,
  'detectable_content:number_placeholders': placeholders,
  'detectable_content:postscript': postscript,
  'detectable_format:constrained_response': one_of_the_options,
  'detectable_format:json_format': json_format,
  'detectable_format:multiple_sections': sections,
  'detectable_format:number_bullet_lists': bullets,
  'detectable_format:number_highlighted_sections': highlights,
  'detectable_format:title': title,
  'keywords:existence': keywords,
  'keywords:forbidden_words': no_forbidden_words,
  'keywords:frequency': keyword_frequency,
  'keywords:letter_frequency': letter_frequency,
  'language:response_language': language,
  'length_constraints:nth_paragraph_first_word': first_word,
  'length_constraints:number_paragraphs': paragraphs,
  'length_constraints:number_sentences': sentences,
  'length_constraints:number_words': words,
  'punctuation:no_comma': no_comma,
  'startend:end_checker': ends_with,
  'startend:quotation': quotation,
}
