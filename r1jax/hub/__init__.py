"""Reads and writes the files of other libraries: Hugging Face, PEFT, GGUF."""
