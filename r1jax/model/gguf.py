"""Models as one GGUF file, which llama.cpp and Ollama run on a laptop.

The tensors are those of the hub by other names; Llama's queries and keys lie there with
the channels of a pair side by side. Llama, Qwen2 and Qwen3 are written.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from r1jax.model import families, rope, storage, weights

ARCHITECTURES = {
  'llama': gguf.MODEL_ARCH.LLAMA,
  'qwen2': gguf.MODEL_ARCH.QWEN2,
  'qwen3': gguf.MODEL_ARCH.QWEN3,
}
TYPES = {
  'f32': gguf.GGMLQuantizationType.F32,
  'f16': gguf.GGMLQuantizationType.F16,
  'q8_0': gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
  'f32': gguf.LlamaFileType.ALL_F32,
  'f16': gguf.LlamaFileType.MOSTLY_F16,
  'q8_0': gguf.LlamaFileType.MOSTLY_Q8_0,
}
BLOCK = 32  # numbers of a row that share a scale in q8_0
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# How a text is cut before pairs are merged: pattern in tokenizer.json -> name there.
PATTERNS = {
  _CONTRACTIONS + r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|' + _REST: 'qwen2',
  _CONTRACTIONS + r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|' + _REST: 'llama-bpe',
}


@dataclasses.dataclass(frozen=True)
class Text:
  """What a file says of a model's texts."""

  tokenizer: Mapping[str, Any]  # tokenizer.json
  eos_id: int
  pad_id: int
  bos_id: int | None = None  # put before each text
  chat_template: str | None = None


def write(
  file: str | os.PathLike[str],
  params: Any,
  like: weights.Checkpoint,
  text: Text,
  kind: str,
) -> None:
  """Writes a file whole or not at all.

  Args:
    file: that there is not yet.
    params: the model's.
    like: the checkpoint that they would make up on the hub.
    text: see `Text`.
    kind: one of TYPES; what has no rows of whole blocks is f16, and vectors are f32.

  Raises:
    WeightsError: there is something in the file's place, or the model or its tokenizer
      is of a kind that isn't written.
  """
  file = Path(file).expanduser()
  if file.exists():
    raise storage.WeightsError(f'{file} is there already; choose another file')
  model_type = like.raw['model_type']
  if model_type not in ARCHITECTURES:
    raise storage.WeightsError(
      f'model_type: expected one of {", ".join(ARCHITECTURES)} for GGUF, got '
      f'{model_type!r}'
    )
  cut = _cut(text.tokenizer)
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_name(f'{file.name}.partial')
  architecture = ARCHITECTURES[model_type]
  writer = gguf.GGUFWriter(
    partial, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True
  )
  try:
    _describe(writer, like, kind)
    _add_text(writer, text, cut, like.vocab_size)
    for name, array in _tensors(params, like):
      stored = _stored(array, kind)
      if stored == TYPES['f16'] and np.abs(array).max() > np.finfo(np.float16).max:
        raise storage.WeightsError(
          f'{name}: expected numbers that float16 holds, got '
          f'{np.abs(array).max():.3g}; choose f32'
        )
      writer.add_tensor(name, gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(file)
  finally:
    partial.unlink(missing_ok=True)


def _describe(writer: gguf.GGUFWriter, like: weights.Checkpoint, kind: str) -> None:
  c = like.config
  writer.add_name(like.folder.name)
  writer.add_context_length(families.positions(like.raw))
  writer.add_embedding_length(c.d_model)
  writer.add_block_count(c.layers)
  writer.add_feed_forward_length(c.d_ff)
  writer.add_head_count(c.heads)
  writer.add_head_count_kv(c.kv_heads)
  writer.add_key_length(c.head_dim)
  writer.add_value_length(c.head_dim)
  writer.add_rope_dimension_count(c.head_dim)
  writer.add_rope_freq_base(c.rope_theta)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_vocab_size(like.vocab_size)
  writer.add_file_type(FILE_TYPES[kind])
  if c.rope.kind in ('linear', 'yarn'):
    writer.add_rope_scaling_type(gguf.RopeScalingType(c.rope.kind))
    writer.add_rope_scaling_factor(c.rope.factor)
  if c.rope.kind == 'yarn':
    writer.add_rope_scaling_orig_ctx_len(c.rope.original_length)


def _add_text(writer: gguf.GGUFWriter, text: Text, cut: str, rows: int) -> None:
  model = text.tokenizer['model']
  added = {token['id']: token for token in text.tokenizer.get('added_tokens', [])}
  by_id = {n: token for token, n in model['vocab'].items()}
  tokens, kinds = [], []
  for n in range(rows):
    if n in added:
      special = added[n]['special']
      tokens.append(added[n]['content'])
      kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    elif n in by_id:
      tokens.append(by_id[n])
      kinds.append(gguf.TokenType.NORMAL)
    else:  # a row of the embedding that no token has
      tokens.append(f'[PAD{n}]')
      kinds.append(gguf.TokenType.UNUSED)
  merges = [x if isinstance(x, str) else ' '.join(x) for x in model['merges']]
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(cut)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(merges)
  writer.add_eos_token_id(text.eos_id)
  writer.add_pad_token_id(text.pad_id)
  if text.bos_id is not None:
    writer.add_bos_token_id(text.bos_id)
  writer.add_add_bos_token(text.bos_id is not None)
  if text.chat_template is not None:
    writer.add_chat_template(text.chat_template)


def _cut(tokenizer: Mapping[str, Any]) -> str:
  """llama.cpp's name for how this tokenizer cuts texts."""
  if tokenizer.get('model', {}).get('type') != 'BPE':
    raise storage.WeightsError(
      f'tokenizer.json: expected a BPE model for GGUF, got '
      f'{tokenizer.get("model", {}).get("type")!r}'
    )
  given = tokenizer.get('pre_tokenizer') or {}
  parts = given.get('pretokenizers', [given])
  names = [part.get('type') for part in parts]
  if names == ['Digits', 'ByteLevel'] and parts[0].get('individual_digits'):
    return 'smollm'
  if names == ['ByteLevel']:
    return 'gpt-2'
  pattern = parts[0].get('pattern', {}).get('Regex')
  if names == ['Split', 'ByteLevel'] and pattern in PATTERNS:
    return PATTERNS[pattern]
  raise storage.WeightsError(
    'tokenizer.json: expected a pre_tokenizer like that of GPT-2, SmolLM, Qwen2 or '
    f'Llama 3 for GGUF, got {json.dumps(given)[:200]}'
  )


def _tensors(params: Any, like: weights.Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors by their names there, float32."""
  c, model_type = like.config, like.raw['model_type']
  names = gguf.get_tensor_name_map(ARCHITECTURES[model_type], c.layers)
  for theirs, array in weights.tensors(params, like):
    name = names.get_name(theirs, try_suffixes=('.weight', '.bias'))
    if name is None:
      raise storage.WeightsError(f'{theirs}: there is no such tensor in GGUF')
    if model_type == 'llama' and '.self_attn.' in theirs:
      heads = {'q_proj': c.heads, 'k_proj': c.kv_heads}.get(theirs.split('.')[-2])
      if heads:
        halves = array.reshape(heads, 2, c.head_dim // 2, -1)
        array = halves.swapaxes(1, 2).reshape(array.shape)
    yield name, np.ascontiguousarray(array, np.float32)
  if c.rope.kind == 'llama3':
    plain, stretched = (
      np.asarray(rope.frequencies(c.head_dim, c.rope_theta, scaling), np.float64)
      for scaling in (rope.PLAIN, c.rope)
    )
    yield 'rope_freqs.weight', (plain / stretched).astype(np.float32)


def _stored(array: np.ndarray, kind: str) -> gguf.GGMLQuantizationType:
  if array.ndim == 1:
    return gguf.GGMLQuantizationType.F32
  if kind == 'q8_0' and array.shape[-1] % BLOCK:
    return gguf.GGMLQuantizationType.F16
  return TYPES[kind]
