"""The tables of kernels, one per instruction set. Only this module compiles kernels/kernels.h."""

from .kernels cimport Kernels


cdef extern from "kernels/kernels.h" nogil:
    const Kernels *kernels_find(const char *name) noexcept
    int cpu_family_of_amd "amd_family"() noexcept


cdef const Kernels *find_kernels(str isa) except NULL:
    """The table called isa, or the best one when isa is empty. Raises ValueError when this CPU cannot run it."""
    cdef bytes name = isa.encode()
    cdef const Kernels *kernels = kernels_find(name)
    if kernels is NULL:
        raise ValueError(f"this CPU has no instruction set {isa!r} (PYLLAMA2_CPU_ISA)")
    return kernels


def amd_family():
    """Return the family of this CPU, such as 0x19 for Zen 3 and Zen 4, or 0 if it is not AMD's."""
    return cpu_family_of_amd()
