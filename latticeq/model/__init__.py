"""Models: configuration, forward pass, tokenizer, generation, quantization."""
