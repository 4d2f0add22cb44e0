"""Publishing results on the hub: model card, what leaves, and the search for secrets in it."""
