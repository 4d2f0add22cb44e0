"""What is trained for: the loss of a batch, and the layout of its rows."""
