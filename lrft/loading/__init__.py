"""Base, tokenizer, data and adapter: of a recipe, and as a saved run was trained."""
