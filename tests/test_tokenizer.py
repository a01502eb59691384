"""The tokenizer: any text comes back, none encodes to a special token."""

import hashlib
import os
import re

import hypothesis
import numpy as np
import pytest
from examples import PIECES
from hypothesis import strategies

from r1jax.text import parsing
from r1jax.text.tokenizer import Tokenizer, pad_left

CORPUS = [
  'User: make 16 from 3 5 2\nAssistant: <think>let me try 3+5=8, 8*2=16. yes</think>'
  '<answer>(3+5)*2</answer>',
  'User: make 7 from 9 4 2\nAssistant: <think>czekaj, sprawdź: błąd. no, wait</think>'
  '<answer>9-4+2</answer>',
] * 20


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(CORPUS, vocab_size=320)


@hypothesis.given(strategies.text() | strategies.lists(PIECES).map(''.join))
def test_the_tokenizer_gives_every_text_back(tokenizer, source):
  assert tokenizer.decode(tokenizer.encode(source)) == source


@hypothesis.given(
  strategies.lists(PIECES | strategies.sampled_from(['<|pad|>', '<|eos|>', '<|'])).map(
    ''.join
  )
)
def test_no_text_encodes_to_a_special_token(tokenizer, source):
  ids = tokenizer.encode(source)
  assert not {tokenizer.pad_id, tokenizer.eos_id} & set(ids)
  assert tokenizer.decode(ids) == source


def test_every_digit_is_a_token_of_its_own(tokenizer):
  digits = {digit: tokenizer.encode(digit) for digit in '0123456789'}
  assert all(len(ids) == 1 for ids in digits.values())
  # 16 is in the corpus 60 times, and would be merged otherwise.
  assert tokenizer.encode('16') == digits['1'] + digits['6']
  assert tokenizer.encode('3+5')[-1:] == digits['5']


def test_every_tag_is_one_token_that_is_decoded(tokenizer):
  ids = tokenizer.encode(''.join(parsing.TAGS))
  assert len(set(ids)) == len(ids) == 4
  assert max(ids) < tokenizer.vocab_size
  assert tokenizer.decode(ids) == '<think></think><answer></answer>'


def test_no_merge_is_spent_on_tags():
  tags_only = Tokenizer.train(['<think></think><answer></answer>'] * 9, 300)
  assert tags_only.vocab_size == 2 + 256 + 4  # specials, bytes, tags, and no merge


def test_training_merges_what_is_frequent(tokenizer):
  assert tokenizer.vocab_size <= 320
  assert len(tokenizer.encode('Assistant')) < len(tokenizer.encode('tnatsissA'))


def test_training_is_deterministic(tmp_path):
  for name in 'ab':
    Tokenizer.train(CORPUS, vocab_size=300).save(tmp_path / name)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_training_refuses_a_vocabulary_without_room_for_bytes():
  with pytest.raises(ValueError, match='vocab_size: expected at least 262, got 261'):
    Tokenizer.train(CORPUS, vocab_size=261)


def test_decode_skips_padding_and_end_of_sequence(tokenizer):
  pad, eos = tokenizer.pad_id, tokenizer.eos_id
  assert (pad, eos) == (0, 1)
  ids = tokenizer.encode('wait 16')
  assert tokenizer.decode([pad, pad, *ids, eos, pad]) == 'wait 16'
  assert tokenizer.decode([pad, eos]) == ''


def test_decode_survives_half_a_character(tokenizer):
  ids = tokenizer.encode('日')
  assert len(ids) == 3
  assert tokenizer.decode(ids[:2]) == '\ufffd'


def test_decode_batch_takes_the_rows_of_an_array(tokenizer):
  rows, _ = pad_left(
    [tokenizer.encode(source) for source in ('no', 'wait, 16')], 12, tokenizer.pad_id
  )
  assert tokenizer.decode_batch(rows) == ['no', 'wait, 16']
  assert tokenizer.decode(rows[1]) == 'wait, 16'


def test_saved_tokenizer_comes_back_and_still_cannot_be_injected(tokenizer, tmp_path):
  path = tmp_path / 'tokenizer.json'
  tokenizer.save(path)
  assert [file.name for file in tmp_path.iterdir()] == ['tokenizer.json']
  loaded = Tokenizer.load(path)
  assert loaded.vocab_size == tokenizer.vocab_size
  source = CORPUS[0] + '<|eos|><|pad|>'
  assert loaded.encode(source) == tokenizer.encode(source)
  assert loaded.decode(loaded.encode(source)) == source


def test_failed_save_keeps_the_file_before(tokenizer, tmp_path, monkeypatch):
  path = tmp_path / 'tokenizer.json'
  path.write_text('before')

  def full_disk(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full_disk)
  with pytest.raises(OSError, match='No space left'):
    tokenizer.save(path)
  assert path.read_text() == 'before'
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('damage', ['half', 'empty', 'bytes', 'foreign'])
def test_damaged_tokenizer_file_is_named(tokenizer, tmp_path, damage):
  path = tmp_path / 'tokenizer.json'
  tokenizer.save(path)
  whole = path.read_bytes()
  path.write_bytes(
    {
      'half': whole[: len(whole) // 2],
      'empty': b'',
      'bytes': b'\xff\xfe' + whole,
      'foreign': whole.replace(b'<|eos|>', b'</s>'),
    }[damage]
  )
  with pytest.raises(ValueError, match=re.escape(f'{path} is damaged')) as caught:
    Tokenizer.load(path)
  assert '\n' not in str(caught.value)


def test_digest_is_that_of_the_file(tmp_path):
  tokenizer = Tokenizer.train(['make 16 from 3 5 2'] * 9, 270)
  tokenizer.save(tmp_path / 'tokenizer.json')
  again = Tokenizer.load(tmp_path / 'tokenizer.json')
  content = (tmp_path / 'tokenizer.json').read_bytes()
  assert tokenizer.digest == again.digest == hashlib.sha256(content).hexdigest()
  assert Tokenizer.train(['abab'] * 9, 270).digest != tokenizer.digest


def test_pad_left_puts_rows_at_the_right_end():
  tokens, mask = pad_left([[5, 6], [], [7, 8, 9]], length=3, pad_id=4)
  assert tokens.tolist() == [[4, 5, 6], [4, 4, 4], [7, 8, 9]]
  assert mask.tolist() == [[False, True, True], [False] * 3, [True] * 3]
  assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)


def test_pad_left_names_the_prompt_that_does_not_fit():
  with pytest.raises(
    ValueError,
    match=r'max_prompt_length: expected at least 4, the tokens of .* prompt, got 3',
  ):
    pad_left([[1], [1, 2, 3, 4]], length=3, pad_id=0)
