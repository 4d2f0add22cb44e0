"""lrft against its peers: `scripts/bench`. What starts processes here needs the standard library alone."""
