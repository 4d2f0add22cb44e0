"""The quickstart: a small model from the package index, rows made by a grammar, a recipe, and answers side by side."""
