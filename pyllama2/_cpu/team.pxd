"""The declarations of team.h, where it says how threads share the steps of a pass."""

from libc.stdint cimport int64_t


cdef extern from "team.h" nogil:
    enum:
        CACHE_LINES

    ctypedef struct Seat:
        pass

    ctypedef struct Team:
        pass

    ctypedef struct Event:
        int kind
        int pieces
        int from_other
        int redone
        double start
        double end

    ctypedef struct Member:
        int id
        int size
        int64_t first
        int64_t end
        Event *events
        int64_t n_events
        int64_t most_events

    void make_team(Team *team, int n_threads, int64_t spins)
    void start_region(Team *team)
    void enter_region(Member *member, Team *team, int id, int size)
    bint step_is_over(const Member *member)
    void start_step(Member *member, int kind, int64_t units, int64_t grain, int64_t most, bint movable)
    bint take_piece(Member *member)
    bint may_write(Member *member)
