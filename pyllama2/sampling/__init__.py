"""From logits to a token: Sampler samples by SamplingParams (params.py), and stop_strings.py ends a text."""
