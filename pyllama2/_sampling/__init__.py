"""The compiled half of sampling.py: loops over the vocabulary. Nothing here knows of models or texts."""
