"""A file mapped into memory, read-only. A page that cannot be read does not end the process (bus_errors.h)."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t
from posix.mman cimport MADV_DONTNEED, MAP_FAILED, MAP_SHARED, PROT_READ, madvise, mmap, munmap
from posix.unistd cimport close, sysconf, _SC_PAGESIZE

import os

from ..errors import ClosedError


cdef extern from "bus_errors.h":
    int guard(const char *start, int64_t size)
    void unguard(int place)
    bint is_damaged(int place)


cdef class Mapping:
    """The first size bytes of an open file as a buffer, with a descriptor of its own.

    The file is unmapped when neither the object nor a buffer of it is referenced any more.

    Args:
        descriptor: the open file; the caller may close it afterwards.
        size: bytes to map, above 0.

    Raises:
        OSError: the file cannot be mapped.
        ClosedError: a buffer is asked for after close().
    """

    cdef char *start
    cdef int64_t n_bytes
    cdef int own_descriptor, place
    cdef Py_ssize_t n_buffers
    cdef bint closed

    def __cinit__(self, *arguments):
        self.own_descriptor, self.place = -1, -1

    def __init__(self, int descriptor, int64_t size):
        assert self.start is NULL
        self.own_descriptor = os.dup(descriptor)
        cdef void *start = mmap(NULL, size, PROT_READ, MAP_SHARED, self.own_descriptor, 0)
        if start == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.start, self.n_bytes = <char *> start, size
        self.place = guard(self.start, size)

    def __dealloc__(self):
        self._unmap()

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.closed:
            raise ClosedError("the file is closed")
        PyBuffer_FillInfo(buffer, self, self.start, self.n_bytes, True, flags)
        self.n_buffers += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.n_buffers -= 1
        if self.closed and self.n_buffers == 0:
            self._unmap()

    def close(self):
        """Unmap the file, now or when its last buffer is released."""
        self.closed = True
        if self.n_buffers == 0:
            self._unmap()

    @property
    def size(self):
        """Bytes of the file when it was mapped."""
        return self.n_bytes

    @property
    def descriptor(self):
        """Descriptor of the file, which may have been renamed or deleted since. -1 when it is unmapped."""
        return self.own_descriptor

    @property
    def damaged(self):
        """Whether some of the bytes could not be read, and have been replaced by zeros."""
        return is_damaged(self.place)

    def release(self, int64_t offset, int64_t length):
        """Give the pages of a range of bytes back to the operating system, which reads them again when needed."""
        cdef int64_t start = offset // sysconf(_SC_PAGESIZE) * sysconf(_SC_PAGESIZE)
        if self.start is not NULL and 0 <= offset and 0 < length and offset + length <= self.n_bytes:
            madvise(self.start + start, offset + length - start, MADV_DONTNEED)

    cdef void _unmap(self) noexcept:
        unguard(self.place)
        self.place = -1
        if self.start is not NULL:
            munmap(self.start, self.n_bytes)
            self.start = NULL
        if self.own_descriptor >= 0:
            close(self.own_descriptor)
            self.own_descriptor = -1
