"""The tables of kernels, one per instruction set."""

from .kernels cimport Kernels


cdef const Kernels *find_kernels(str isa) except NULL
