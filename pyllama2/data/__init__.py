"""The bundled demo model, stories.bin."""
