"""The declarations of places.h."""


cdef extern from "places.h" nogil:
    enum:
        ANYWHERE

    void take_place(int cpu)
