"""Several processes on one run: launching, strategies, exchange of gradients."""
