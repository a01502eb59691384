"""Writes a model as a GGUF file, which llama.cpp and Ollama run.

The tensors are those of the Hugging Face layout under other names, with four
differences: queries and keys of Llama have the two channels of a RoPE pair next to each
other, all experts of a layer are one tensor, the matrix that computes keys and values
in latent attention is two, and gains of Gemma are not stored minus 1.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import optax

from r1jax.hub import (
  config_fields,
  families,
  gguf_models,
  gguf_tensors,
  gguf_vocabulary,
  weights,
)
from r1jax.hub.gguf_models import ARCHITECTURES
from r1jax.hub.gguf_vocabulary import Vocabulary
from r1jax.hub.hf_checkpoint import HFCheckpoint
from r1jax.hub.storage import WeightsError
from r1jax.model import rope
from r1jax.model.config import Experts, ModelConfig

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
BLOCK = 32  # elements of a row that share a scale in q8_0


def write(
  file: str | os.PathLike[str],
  params: optax.Params,
  like: HFCheckpoint,
  vocabulary: Vocabulary,
  kind: str,
) -> None:
  """Writes a file, completely or not at all.

  Args:
    file: that does not exist yet.
    params: of the model.
    like: the checkpoint of the same model in the Hugging Face layout.
    vocabulary: see `Vocabulary`.
    kind: one of TYPES. Vectors are always f32, and tensors whose rows are no multiple
      of BLOCK become f16 instead of q8_0.

  Raises:
    WeightsError: the file exists, or GGUF cannot express the model or its tokenizer.
  """
  file = Path(file).expanduser()
  if file.exists():
    raise WeightsError(f'{file} already exists; choose another file')
  pre_tokenizer = check(like, vocabulary)
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_name(f'{file.name}.partial')
  architecture = ARCHITECTURES[like.raw['model_type']]
  writer = gguf.GGUFWriter(
    partial, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True
  )
  try:
    _describe(writer, like, kind)
    _add_vocabulary(writer, vocabulary, pre_tokenizer, like.vocab_size)
    for name, array in _tensors(params, like):
      stored = _stored(name, array, kind)
      if stored == TYPES['f16'] and np.abs(array).max() > np.finfo(np.float16).max:
        raise WeightsError(
          f'{name}: expected numbers that fit float16, got '
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


def check(like: HFCheckpoint, vocabulary: Vocabulary) -> str:
  """Returns llama.cpp's name of the pre-tokenizer.

  Raises:
    WeightsError: GGUF cannot express the model or its tokenizer.
  """
  gguf_models.check(like)
  return gguf_vocabulary.check(vocabulary)


def _describe(writer: gguf.GGUFWriter, like: HFCheckpoint, kind: str) -> None:
  c = like.config
  writer.add_name(like.folder.name)
  long = c.rope.kind == 'longrope'  # llama.cpp has its frequencies for long texts too
  writer.add_context_length(
    like.raw['max_position_embeddings'] if long else families.max_positions(like.raw)
  )
  writer.add_embedding_length(c.d_model)
  writer.add_block_count(c.layers)
  writer.add_feed_forward_length(c.d_ff)
  writer.add_head_count(c.heads)
  if c.latent.kv_rank:
    _describe_latent(writer, c)
  else:
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
  if c.experts.count:
    _describe_experts(writer, c.experts)
  writer.add_rope_dimension_count(c.rope_dim)
  writer.add_rope_freq_base(c.rope_theta)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_vocab_size(like.vocab_size)
  writer.add_file_type(FILE_TYPES[kind])
  if c.sliding.window:
    writer.add_sliding_window(c.sliding.window)
    writer.add_sliding_window_pattern(gguf_models.period(c))
    writer.add_rope_freq_base_swa(c.sliding.theta)
  if long:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_attn_factors(c.rope.amplitude)
    writer.add_rope_scaling_orig_ctx_len(c.rope.original_length)
  if c.rope.kind in ('linear', 'yarn'):
    writer.add_rope_scaling_type(gguf.RopeScalingType(c.rope.kind))
    writer.add_rope_scaling_factor(c.rope.factor)
  if c.rope.kind == 'yarn':
    writer.add_rope_scaling_orig_ctx_len(c.rope.original_length)
    writer.add_rope_scaling_yarn_beta_fast(c.rope.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(c.rope.beta_slow)
    if c.rope.score_factor != 1:  # 0.1 * mscale_all_dim
      amplitude = math.sqrt(c.rope.score_factor)
      writer.add_rope_scaling_yarn_log_mul((amplitude - 1) / math.log(c.rope.factor))


def _describe_latent(writer: gguf.GGUFWriter, c: ModelConfig) -> None:
  writer.add_head_count_kv(1)  # shared by all heads
  writer.add_kv_lora_rank(c.latent.kv_rank)
  if c.latent.q_rank:
    writer.add_q_lora_rank(c.latent.q_rank)
  writer.add_key_length(c.latent.kv_rank + c.latent.rope_dim)
  writer.add_value_length(c.latent.kv_rank)
  writer.add_key_length_mla(c.head_dim)
  writer.add_value_length_mla(c.latent.value_dim)


def _describe_experts(writer: gguf.GGUFWriter, e: Experts) -> None:
  writer.add_expert_count(e.count)
  writer.add_expert_used_count(e.active)
  writer.add_expert_feed_forward_length(e.d_ff)
  writer.add_expert_shared_count(e.shared)
  writer.add_leading_dense_block_count(e.dense_layers)
  writer.add_expert_weights_scale(e.scale)
  writer.add_expert_weights_norm(e.normalised)
  scores = {'softmax': 'SOFTMAX', 'sigmoid': 'SIGMOID'}[e.scores]
  writer.add_expert_gating_func(gguf.ExpertGatingFuncType[scores])
  if e.groups > 1:
    writer.add_expert_group_count(e.groups)
    writer.add_expert_group_used_count(e.active_groups)


def _add_vocabulary(
  writer: gguf.GGUFWriter, vocabulary: Vocabulary, pre_tokenizer: str, rows: int
) -> None:
  model = vocabulary.tokenizer['model']
  added = {token['id']: token for token in vocabulary.tokenizer.get('added_tokens', [])}
  by_id = {n: token for token, n in model['vocab'].items()}
  tokens, kinds = [], []
  for n in range(rows):
    if n in added:
      special = added[n]['special'] and added[n]['content'] not in vocabulary.shown
      tokens.append(added[n]['content'])
      kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    elif n in by_id:
      tokens.append(by_id[n])
      kinds.append(gguf.TokenType.NORMAL)
    else:  # a row of the embedding without a token
      tokens.append(f'[PAD{n}]')
      kinds.append(gguf.TokenType.UNUSED)
  merges = [x if isinstance(x, str) else ' '.join(x) for x in model['merges']]
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre_tokenizer)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(merges)
  # llama.cpp ends an output at each of these.
  ends = writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id
  for add, stop in zip(ends, vocabulary.stop_ids, strict=False):
    add(stop)
  writer.add_pad_token_id(vocabulary.pad_id)
  before, after = vocabulary.around
  if (bos := before[0] if before else vocabulary.bos_id) is not None:
    writer.add_bos_token_id(bos)
  writer.add_add_bos_token(bool(before))
  writer.add_add_eos_token(bool(after))
  if vocabulary.chat_template is not None:
    writer.add_chat_template(vocabulary.chat_template)


def _tensors(
  params: optax.Params, like: HFCheckpoint
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors in float32, by their names in GGUF."""
  c, model_type = like.config, like.raw['model_type']
  names = gguf.get_tensor_name_map(ARCHITECTURES[model_type], c.layers)
  experts: list[np.ndarray] = []
  # Without further tensors of the files, which llama.cpp does not use.
  for row, hub_name, array in weights.arrays(
    params, dataclasses.replace(like, tensors={})
  ):
    if c.stored_minus_1 and row.path[-1] == 'gain':
      array = 1 + array.astype(np.float32)
    if gguf_tensors.EXPERT.search(hub_name):
      experts.append(array)
      if len(experts) < c.experts.count:
        continue
      array, experts = np.stack(experts), []
    for part, found in _parts(
      gguf_tensors.EXPERT.sub('.experts.', hub_name), array, like
    ):
      name = names.get_name(part, try_suffixes=('.weight', '.bias'))
      if name is None:
        raise WeightsError(f'{hub_name}: GGUF has no such tensor')
      yield name, np.ascontiguousarray(found, np.float32)
  if c.rope.kind == 'longrope':
    for kind in ('long', 'short'):
      factors = config_fields.scaling(like.raw)[f'{kind}_factor']
      yield f'rope_factors_{kind}.weight', np.array(factors, np.float32)
  if c.rope.kind == 'llama3':
    plain, stretched = (
      np.asarray(rope.frequencies(c.head_dim, c.rope_theta, scaling), np.float64)
      for scaling in (rope.PLAIN, c.rope)
    )
    yield 'rope_freqs.weight', (plain / stretched).astype(np.float32)


def _parts(
  hub_name: str, array: np.ndarray, like: HFCheckpoint
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors of GGUF that a tensor of the hub becomes, by hub names."""
  c = like.config
  architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[like.raw['model_type']]]
  if heads := gguf_tensors.permuted_heads(architecture, hub_name, c):
    halves = array.reshape(heads, 2, c.head_dim // 2, -1)
    yield hub_name, halves.swapaxes(1, 2).reshape(array.shape)
  elif gguf_tensors.LATENT_UP in hub_name:
    both = array.reshape(c.heads, -1, c.latent.kv_rank)
    key, value = np.split(both, [c.head_dim - c.latent.rope_dim], axis=1)
    names = (
      hub_name.replace(gguf_tensors.LATENT_UP, part)
      for part in gguf_tensors.LATENT_PARTS
    )
    yield from zip(names, (key.swapaxes(1, 2), value), strict=True)
  else:
    yield gguf_tensors.library_name(hub_name), array


def _stored(name: str, array: np.ndarray, kind: str) -> gguf.GGMLQuantizationType:
  # Routers and the biases that balance them too, as in llama.cpp's own files.
  if array.ndim == 1 or 'ffn_gate_inp' in name:
    return gguf.GGMLQuantizationType.F32
  if kind == 'q8_0' and array.shape[-1] % BLOCK:
    return gguf.GGMLQuantizationType.F16
  return TYPES[kind]
