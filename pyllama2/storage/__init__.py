"""Weights in memory and in our file: model_file.py opens and writes a model, weights.py has the layout of a tensor."""
