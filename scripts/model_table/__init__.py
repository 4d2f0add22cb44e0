"""What lrft does with each family of language models that transformers knows, tried on tiny models."""
