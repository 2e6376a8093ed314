/* Which CPU a thread runs on, for teams whose threads are bound to CPUs. */
#ifndef PYLLAMA2_PLACES_H
#define PYLLAMA2_PLACES_H

enum { ANYWHERE = -1 };

#ifdef __linux__
#include <sched.h>

static _Thread_local int bound_to = ANYWHERE;
static _Thread_local cpu_set_t unbound; /* what the thread might use before it was bound */

/* Binds the calling thread to a CPU. ANYWHERE: it may run where it might before. A thread of OpenMP keeps its CPU from
 * one region to the next, so this seldom asks the system. It does nothing if the system refuses: a container may have
 * lost the CPU since it was asked for. */
static inline void take_place(int cpu) {
  cpu_set_t wanted;
  if (cpu == bound_to) return;
  if (bound_to == ANYWHERE && sched_getaffinity(0, sizeof unbound, &unbound) != 0) return;
  CPU_ZERO(&wanted);
  if (cpu != ANYWHERE && cpu < CPU_SETSIZE) CPU_SET(cpu, &wanted);
  if (sched_setaffinity(0, sizeof wanted, cpu == ANYWHERE ? &unbound : &wanted) == 0) bound_to = cpu;
}
#else
static inline void take_place(int cpu) { (void)cpu; }
#endif

#endif
