"""What can be said about a model: how well it predicts, what is in it, how fast memory is read."""
