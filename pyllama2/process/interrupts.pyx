"""Signals that wait for their moment: what several callers share is never left half changed by Ctrl-C.

    with Interrupts() as interrupts:
        ...                            # handlers are held back
        with interrupts.allowed():
            ...                        # and called here, as always; they may raise
                                       # or at the end
Python runs signal handlers in the main thread only, between any two instructions of its own; in other threads all of
this does nothing.

Compiled, because a handler that raises must not come between two steps below: in here one can run only inside the calls
of threading's and signal's functions, and what it raises there is caught.
"""

import os
import signal
import threading

# Those whose handlers raise, by habit: KeyboardInterrupt, an exit that tidies up, a time that has run out.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]


cdef class Interrupts:
    """Stands in for the signals' Python handlers, itself their handler, and calls them when they may be called.

    Each signal's handler is called once for each time it came, and all are back at the end, whatever they raise.
    """

    cdef dict handlers  # number -> the handler it stands in for
    cdef list pending   # numbers of signals that wait, in the order in which they came
    cdef bint open      # whether handlers may run
    cdef bint left      # whether the block has ended
    cdef object thread  # that is in the block

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
        except BaseException as error:  # a handler that was not held back yet
            self._leave(error)
        return self

    def __exit__(self, *raised):
        self._leave(None)

    def __call__(self, number, frame):
        """What Python calls for a signal."""
        if self.left:  # someone has kept this handler
            self.handlers[number](number, frame)
        elif self.open:
            self.open = False  # and it stays so if the handler raises
            self.handlers[number](number, frame)
            self.open = True
        else:
            self.pending.append(number)

    def allowed(self):
        """A block inside which handlers run, also those of signals that came before it."""
        return Window(self)

    def call_pending(self):
        """Call the handlers of signals that came by now. If one raises, the others still wait."""
        while self.pending:
            number = self.pending.pop(0)
            self.handlers[number](number, None)

    cdef _leave(self, error):
        """Put all handlers back and call those of signals that came, then raise the last error, or else the given one.

        Handlers that are back may raise while the rest is put back: each try takes a signal away, so it ends.
        """
        for number, handler in self.handlers.items():
            while True:
                try:
                    if signal.getsignal(number) is self:  # else someone installed another meanwhile
                        signal.signal(number, handler)
                    break
                except BaseException as raised:
                    error = raised
        self.left = True
        # SIGINT first: callers outlive a KeyboardInterrupt, which must not hide the exit that another handler raises.
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
    """In a child that another thread forked, nobody leaves the block that the parent's main thread was in."""
    for number in _SIGNALS:
        installed = handler = signal.getsignal(number)
        while isinstance(handler, Interrupts) and (<Interrupts> handler).thread != threading.get_ident():
            handler = (<Interrupts> handler).handlers[number]
        if handler is not installed:
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_put_back_in_child)
