"""A lock that neither a signal's handler nor a forked child waits for in vain.

It is compiled for the reason that interrupts.pyx is: its holder is noted in the moment that it is acquired.
"""

import threading
from threading import get_ident

from .forking import renew_after_fork


cdef class Lock:
    """threading.Lock for `with`, except in these cases:

    A thread that holds it may enter it again, as a signal's handler does that interrupts the block.
    In a forked child it is free if another thread held it, even when the fork happened in a handler that interrupted
    the wait for it.
    """

    cdef object lock
    cdef object holder  # identity of the thread that holds it; None while it is free, or about to be acquired
    cdef int depth      # how often that thread has entered it
    cdef object __weakref__

    def __init__(self):
        self.lock, self.holder, self.depth = threading.Lock(), None, 0
        renew_after_fork(self, _release_in_child)

    @property
    def held_here(self):
        """Whether the calling thread holds it."""
        return self.holder == get_ident()

    def __enter__(self):
        here = get_ident()
        if self.holder != here:
            self.lock.acquire()
            self.holder = here
        self.depth += 1

    def __exit__(self, *raised):
        self.depth -= 1
        if self.depth == 0:
            self.holder = None
            self.lock.release()


def _release_in_child(Lock lock):
    if lock.lock.locked() and lock.holder != get_ident():
        lock.holder, lock.depth = None, 0
        lock.lock.release()
