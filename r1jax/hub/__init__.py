"""Files as other libraries write them: Hugging Face checkpoints, PEFT, GGUF."""
