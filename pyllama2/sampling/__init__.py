"""From logits to a token. sampler.py is the way in; choose.pyx has its loops over the vocabulary."""
