// Fibres: a stack per thread of a block, and the switch from one to another.

#include <sys/mman.h>

#include "state.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

namespace {

char* stacks() {
  static char* memory = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory;
}

}  // namespace

char* stack_of(int thread) { return stacks() + thread * kStackBytes; }

#if defined(__x86_64__)

extern "C" void emulator_switch(void** save, void* to);
__asm__(
    ".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n"
    ".size emulator_switch,.-emulator_switch\n");

namespace {
void* launching_stack;
}

void prepare_stack(int thread, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack_of(thread) + kStackBytes - 64 * (thread % 32 + 1));  // spread over sets
  *--top = nullptr;  // where entry would return to; it never does
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  state.threads[thread].stack_pointer = top;
}

void switch_to(int thread) {
  const int old = state.current;
  state.current = thread;
  if (thread >= 0) {
    emulator_indices.thread = state.threads[thread].index;
    emulator_indices.lane = thread & 31;
    state.current_warp = thread >> 5;
  }
  emulator_switch(old < 0 ? &launching_stack : &state.threads[old].stack_pointer,
                  thread < 0 ? launching_stack : state.threads[thread].stack_pointer);
}

#else

namespace {
ucontext_t contexts[kMaxThreads + 1];  // the last one is the launching code's
}

void prepare_stack(int thread, void (*entry)()) {
  ucontext_t& context = contexts[thread];
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(thread);
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

void switch_to(int thread) {
  const int old = state.current;
  state.current = thread;
  if (thread >= 0) {
    emulator_indices.thread = state.threads[thread].index;
    emulator_indices.lane = thread & 31;
    state.current_warp = thread >> 5;
  }
  swapcontext(&contexts[old < 0 ? kMaxThreads : old], &contexts[thread < 0 ? kMaxThreads : thread]);
}

#endif

}  // namespace emulator
