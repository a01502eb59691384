#!/usr/bin/env bash
# transformers 5.24.0: what tokenizer.json says of its normalizer does not count where
# tokenizer_config.json names `Qwen2Tokenizer`.
#
# tokenizer.json is the whole tokenizer, and the library `tokenizers` reads it so. One
# would expect AutoTokenizer to do the same. For this class it builds the tokenizer anew
# from the vocabulary, with NFC as the normalizer, whatever the file says. So the same
# folder gives other tokens to whoever reads tokenizer.json directly.
#
# Seen: the file has no normalizer; of `e` and a combining acute tokenizers makes 3 tokens,
# transformers 2, since it composes them first.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 tokenizers==0.23.3
"$tmp/venv/bin/python" - "$tmp" <<'PY'
import json, pathlib, sys
import tokenizers, transformers
from tokenizers import decoders, models, pre_tokenizers

folder = pathlib.Path(sys.argv[1]) / 'model'
folder.mkdir()
made = tokenizers.Tokenizer(models.BPE())
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
trainer = tokenizers.trainers.BpeTrainer(
  vocab_size=260, special_tokens=['<|endoftext|>'], show_progress=False,
  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
)
made.train_from_iterator(['so'], trainer)
made.save(str(folder / 'tokenizer.json'))
assert json.loads((folder / 'tokenizer.json').read_text())['normalizer'] is None
settings = {'tokenizer_class': 'Qwen2Tokenizer', 'eos_token': '<|endoftext|>'}
(folder / 'tokenizer_config.json').write_text(json.dumps(settings))

text = 'e\u0301'
direct = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
theirs = transformers.AutoTokenizer.from_pretrained(folder)
print('tokenizers:  ', direct.encode(text).tokens, direct.normalizer)
print('transformers:', theirs.tokenize(text), theirs.backend_tokenizer.normalizer)
assert direct.normalizer is None
assert 'NFC' in str(theirs.backend_tokenizer.normalizer), 'it has changed'
assert len(direct.encode(text).ids) == 3 and len(theirs.tokenize(text)) == 2
PY
