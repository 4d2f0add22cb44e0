"""Loss and generated answers of a model on rows."""
