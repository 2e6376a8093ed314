"""What computes logits. Start at select_backend(). base.py has the contract, _cpu, _gpu and _staged implement it."""

from .devices import asked_device, gpu_numbers, placed_threads, select_backend

__all__ = ["asked_device", "gpu_numbers", "placed_threads", "select_backend"]
