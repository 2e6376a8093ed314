"""Weights as they lie in memory and in our file. model_file.py is the way in."""
