"""What is installed, whether it fits together, and what a run on this machine would use."""
