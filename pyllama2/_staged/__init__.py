"""One model on several devices: its first layers on GPUs, the rest on the CPU. Start at backend.py."""

from .backend import StagedBackend

__all__ = ["StagedBackend"]
