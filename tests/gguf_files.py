"""GGUF files made with its own library: a model of Llama with rows of 256 numbers."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType

WIDTH, ROWS = 256, 300
FIELDS = {
  'llama.context_length': 64,
  'llama.embedding_length': WIDTH,
  'llama.block_count': 1,
  'llama.feed_forward_length': WIDTH,
  'llama.attention.head_count': 4,
  'llama.attention.head_count_kv': 2,
  'llama.attention.layer_norm_rms_epsilon': 1e-5,
}
MATRICES = {
  'token_embd.weight': ROWS,
  'blk.0.attn_q.weight': WIDTH,
  'blk.0.attn_k.weight': WIDTH // 2,
  'blk.0.attn_v.weight': WIDTH // 2,
  'blk.0.attn_output.weight': WIDTH,
  'blk.0.ffn_gate.weight': WIDTH,
  'blk.0.ffn_up.weight': WIDTH,
  'blk.0.ffn_down.weight': WIDTH,
}
VECTORS = ('output_norm.weight', 'blk.0.attn_norm.weight', 'blk.0.ffn_norm.weight')


def make(file, kind='F32', fields=None, tensors=None, seed=0, architecture='llama'):
  """Writes a file; None as a field or tensor leaves it out."""
  writer = gguf.GGUFWriter(file, architecture)
  for name, value in {**FIELDS, **(fields or {})}.items():
    if value is not None:
      add_field(writer, name, value)
  random, stored = np.random.default_rng(seed), GGMLQuantizationType[kind]
  block, size = gguf.GGML_QUANT_SIZES[stored]
  # Bytes below 60: no scale among them, of whatever type, is infinite or no number.
  found = {
    name: random.integers(0, 60, (rows, WIDTH // block * size), np.uint8)
    for name, rows in MATRICES.items()
  }
  found |= {name: random.normal(size=WIDTH).astype(np.float32) for name in VECTORS}
  for name, data in {**found, **(tensors or {})}.items():
    if data is not None:
      raw = stored if data.dtype == np.uint8 else None
      writer.add_tensor(name, data, raw_dtype=raw)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def add_field(writer, name, value):
  """Adds metadata in the type in which llama.cpp expects such a value."""
  add = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
    list: writer.add_array,
  }
  add[type(value)](name, value)
