"""Measurements of models and of the machine: how well a model predicts, what is in it, how fast memory is read."""
