"""One method per file, named by the word that a recipe uses. The folder is the registry."""
