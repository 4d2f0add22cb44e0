"""Keys and values of other trainers: one table per tool, each key with its place in a recipe or a reason."""
