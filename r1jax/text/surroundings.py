"""What a tokenizer puts around each text that it is asked to encode."""

import tokenizers


def around(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
  """Returns the tokens that a tokenizer puts before each text, and those behind it.

  Whichever post-processor it has: those mark what they add. `tokenizer` neither cuts
  texts nor pads them.
  """
  encoding = tokenizer.encode('a')
  added = encoding.special_tokens_mask
  first = added.index(0) if 0 in added else len(added)
  last = len(added) - added[::-1].index(0) if 0 in added else len(added)
  return encoding.ids[:first], encoding.ids[last:]
