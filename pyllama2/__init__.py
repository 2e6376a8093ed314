"""pyllama2: run Llama-2-family models on one machine."""
