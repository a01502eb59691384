"""Prompt templates, tokenizer, parsing of outputs, and languages."""
