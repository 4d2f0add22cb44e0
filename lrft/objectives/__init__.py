"""Training objectives: losses, and the layout of batches."""
