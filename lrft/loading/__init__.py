"""Load base, tokenizer, data and adapter, from a recipe or from a saved run."""
