"""Tokens that a tokenizer puts before and after each text, such as BOS and EOS."""

import tokenizers


def around(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
  """Returns the tokens that a tokenizer puts before each text, and those after it.

  Works with any post-processor, since each marks the tokens that it adds. `tokenizer`
  must neither truncate nor pad.
  """
  encoding = tokenizer.encode('a')
  added = encoding.special_tokens_mask
  first = added.index(0) if 0 in added else len(added)
  last = len(added) - added[::-1].index(0) if 0 in added else len(added)
  return encoding.ids[:first], encoding.ids[last:]
