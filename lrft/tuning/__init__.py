"""A learning rate for one's own data, by successive halving of short runs."""
