"""Text into the model and out of it: templates, tokenizer, parsing, languages."""
