"""What computes logits. Start at select_backend(). base.py has the contract, _cpu and _gpu implement it."""

from .devices import asked_device, select_backend

__all__ = ["asked_device", "select_backend"]
