"""Signals that are delayed, so that Ctrl-C never leaves what several callers share half changed.

    with Interrupts() as interrupts:
        ...                            # handlers wait
        with interrupts.allowed():
            ...                        # handlers run as always, and may raise
                                       # handlers that still wait run at the end of the block
Python runs signal handlers only in the main thread, between any two of its instructions. In other threads all of this
does nothing.

It is compiled, because no handler that raises may run between two steps below. In compiled code a handler can run only
inside calls of functions of threading and signal, and what it raises there is caught.
"""

import os
import signal
import threading

# Signals whose handlers usually raise, fork or clean up: Ctrl-C, an end, a timeout, what a scheduler of jobs sends.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


cdef class Interrupts:
    """Replaces the signals' Python handlers, and calls them when they may run.

    A handler is called once for each time that its signal came. At the end all handlers are restored, whatever they
    raise.
    """

    cdef dict handlers  # signal number -> the handler that was replaced
    cdef list pending   # numbers of signals that wait, in order of arrival
    cdef bint open      # whether handlers may run
    cdef bint left      # whether the block has ended
    cdef object thread  # the thread that is in the block

    def __cinit__(self):
        self.handlers, self.pending, self.thread = {}, [], threading.get_ident()

    def __enter__(self):
        try:
            if threading.current_thread() is threading.main_thread():
                for number in _SIGNALS:
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self.handlers[number] = handler
                        signal.signal(number, self)
        except BaseException as error:  # raised by a handler that was not replaced yet
            self._leave(error)
        return self

    def __exit__(self, *raised):
        self._leave(None)

    def __call__(self, number, frame):
        """Handle a signal: Python calls this."""
        if self.left:  # someone kept this object as a handler
            self.handlers[number](number, frame)
        elif self.open:
            self.open = False  # stays False if the handler raises
            self.handlers[number](number, frame)
            self.open = True
        else:
            self.pending.append(number)

    def allowed(self):
        """Return a block in which handlers run, also those of signals that came before it."""
        return Window(self)

    def call_pending(self):
        """Call the handlers of waiting signals. If one raises, the others still wait."""
        while self.pending:
            number = self.pending.pop(0)
            self.handlers[number](number, None)

    cdef _leave(self, error):
        """Restore all handlers, call those of waiting signals, then raise the last error, or else the given one.

        A restored handler may raise while the rest is restored. Each attempt uses up a signal, so this ends.
        """
        for number, handler in self.handlers.items():
            while True:
                try:
                    if signal.getsignal(number) is self:  # else someone has installed another handler
                        signal.signal(number, handler)
                    break
                except BaseException as raised:
                    error = raised
        self.left = True
        # SIGINT first: callers survive a KeyboardInterrupt, and it must not hide the exit that another handler raises.
        for number in sorted(self.pending, key=lambda number: number != signal.SIGINT):
            try:
                self.handlers[number](number, None)
            except BaseException as raised:
                error = raised
        self.pending.clear()
        if error is not None:
            raise error


cdef class Window:
    """The block of allowed()."""

    cdef Interrupts interrupts

    def __cinit__(self, Interrupts interrupts):
        self.interrupts = interrupts

    def __enter__(self):
        self.interrupts.call_pending()
        self.interrupts.open = True

    def __exit__(self, *raised):
        self.interrupts.open = False


def _put_back_in_child():
    """Restore handlers in a child that another thread forked: nobody leaves the block of the parent's main thread."""
    for number in _SIGNALS:
        installed = handler = signal.getsignal(number)
        while isinstance(handler, Interrupts) and (<Interrupts> handler).thread != threading.get_ident():
            handler = (<Interrupts> handler).handlers[number]
        if handler is not installed:
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_put_back_in_child)
