"""Coming from another tool: its configuration read, recognised, and written as a recipe."""
