"""From logits to a token. Start at sampler.py; choose.pyx has the loops over the vocabulary."""
