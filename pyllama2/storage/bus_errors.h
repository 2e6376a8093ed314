/* A handler of SIGBUS for mapped files. When a mapped file is truncated or its disk fails, reading a missing page
 * raises SIGBUS, which would end the process. Here the page reads as zeros instead, and the mapping is marked as
 * damaged. The reader checks the mark afterwards and discards its results.
 *
 * Why this is sound in a signal handler: The signal comes from the reading thread's own access, so that the thread
 * holds no lock of malloc or of the kernel at that moment. The handler takes no lock and allocates nothing. It reads
 * atomic variables and makes one system call, mmap, which replaces all pages from the missing one to the end of the
 * mapping by zeros. No code is skipped: the read is repeated, and succeeds. A mapping leaves the table before it is
 * unmapped, so that the handler never replaces other memory. Every other SIGBUS goes to the handler that was installed
 * before (faulthandler's, or the user's), or ends the process as usual. A handler that is installed later runs first,
 * and this one then runs only if that one calls it.
 */
#ifndef PYLLAMA2_BUS_ERRORS_H
#define PYLLAMA2_BUS_ERRORS_H

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_GUARDED = 1024 }; /* mappings at a time; more are not guarded */

typedef struct {
  atomic_uintptr_t start; /* 0: this entry is free */
  atomic_uintptr_t end;
  atomic_int damaged;
} Guarded;

static Guarded guarded[MAX_GUARDED];
static struct sigaction bus_error_before;
static uintptr_t bus_error_page;

/* Treat a SIGBUS as if this handler were not installed. */
static void pass_bus_error_on(int number, siginfo_t* info, void* context) {
  if (bus_error_before.sa_flags & SA_SIGINFO) {
    bus_error_before.sa_sigaction(number, info, context);
  } else if (bus_error_before.sa_handler == SIG_DFL || (bus_error_before.sa_handler == SIG_IGN && info->si_code > 0)) {
    signal(number, SIG_DFL); /* a faulting read is repeated after the return, and ends the process */
    if (info->si_code <= 0) raise(number);
  } else if (bus_error_before.sa_handler != SIG_IGN) {
    bus_error_before.sa_handler(number);
  }
}

static void on_bus_error(int number, siginfo_t* info, void* context) {
  int error = errno;
  uintptr_t address = info->si_code > 0 ? (uintptr_t)info->si_addr : 0; /* only the kernel gives an address */
  for (int i = 0; address && i < MAX_GUARDED; i++) {
    uintptr_t start = atomic_load(&guarded[i].start), end = atomic_load(&guarded[i].end);
    if (start == 0 || address < start || address >= end) continue;
    uintptr_t page = address & ~(bus_error_page - 1);
    atomic_store(&guarded[i].damaged, 1); /* before any thread can read the zeros */
    if (mmap((void*)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
      errno = error;
      return;
    }
    break;
  }
  pass_bus_error_on(number, info, context);
  errno = error;
}

/* Guard a mapping; returns its place in the table, -1 if the table is full. This and the next two functions need the
 * GIL. */
static int guard(const char* start, int64_t size) {
  if (bus_error_page == 0) { /* the first call installs the handler, which stays */
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    bus_error_page = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigaction(SIGBUS, NULL, &bus_error_before);
    sigaction(SIGBUS, &action, NULL);
  }
  for (int i = 0; i < MAX_GUARDED; i++) {
    if (atomic_load(&guarded[i].start)) continue;
    atomic_store(&guarded[i].damaged, 0);
    atomic_store(&guarded[i].end, (uintptr_t)start + (uintptr_t)size);
    atomic_store(&guarded[i].start, (uintptr_t)start);
    return i;
  }
  return -1;
}

static void unguard(int place) {
  if (place >= 0) atomic_store(&guarded[place].start, 0);
}

static int is_damaged(int place) { return place >= 0 && atomic_load(&guarded[place].damaged); }

#endif
