"""Public configurations of other tools, turned into recipes: what docs/from-other-tools.md says of them."""
