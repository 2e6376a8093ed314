/* The library of a CUDA driver that is not there: the calls that CuPy makes to it, and those of the CUDA runtime, which
   patching.py leads here. Each one goes to a function of Python (hooks), as long as there is one. After pretended_stop()
   all succeed and do nothing: Python may be gone, and CuPy still frees what it has. */

#include <immintrin.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>

typedef long Word; /* a pointer or an integer: what a register has */

enum { MAX_HOOKS = 64 };
static int (*hooks[MAX_HOOKS])(Word, Word, Word, Word, Word, Word);
static int (*launch_hook)(void*, const unsigned*, void*, void**);
static volatile int running;

void pretended_set_hook(int i, void* function) { hooks[i] = (int (*)(Word, Word, Word, Word, Word, Word))function; }
void pretended_set_launch(void* function) { launch_hook = (int (*)(void*, const unsigned*, void*, void**))function; }
/* How a hook ends: what it returns is lost when an exception of a signal's handler comes in between. */
static __thread int finished, status, late_signal;
void pretended_finish(int result) { status = result, finished = 1; }
void pretended_raise_later(int number) { late_signal = number; }

/* Calls a hook until it has finished. An exception at its beginning is that of a signal, which is raised after it again,
 * so that the program's own code gets it. */
#define CALL_HOOK(call)                    \
  do {                                     \
    int number;                            \
    late_signal = 0;                       \
    for (finished = 0; !finished;) {       \
      call;                                \
      if (!finished) late_signal = SIGINT; \
    }                                      \
    number = late_signal;                  \
    if (number) raise(number);             \
    return status;                         \
  } while (0)

void pretended_start(void) { running = 1; }
void pretended_stop(void) { running = 0; }

/* Functions of up to six arguments, all of which are in registers. */
#define ENTRY(i)                                                      \
  int pretended_##i(Word a, Word b, Word c, Word d, Word e, Word f) { \
    if (!running || hooks[i] == NULL) return 0;                       \
    CALL_HOOK(hooks[i](a, b, c, d, e, f));                            \
  }
#define FOUR(i) ENTRY(i##0) ENTRY(i##1) ENTRY(i##2) ENTRY(i##3)
ENTRY(0)
ENTRY(1)
ENTRY(2)
ENTRY(3)
ENTRY(4)
ENTRY(5)
ENTRY(6)
ENTRY(7)
ENTRY(8)
ENTRY(9)
#define TEN(i) FOUR(i) ENTRY(i##4) ENTRY(i##5) ENTRY(i##6) ENTRY(i##7) ENTRY(i##8) ENTRY(i##9)
TEN(1)
TEN(2)
TEN(3)
TEN(4)
TEN(5)
FOUR(6)

/* The driver's functions have the first hooks; OF_THE_DRIVER in driver.py has the same order. */
int cuModuleLoadData(void** module, const void* image) { return pretended_0((Word)module, (Word)image, 0, 0, 0, 0); }
int cuModuleUnload(void* module) { return pretended_1((Word)module, 0, 0, 0, 0, 0); }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  return pretended_2((Word)function, (Word)module, (Word)name, 0, 0, 0);
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra) {
  const unsigned sizes[] = {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared};
  (void)extra;
  if (!running || launch_hook == NULL) return 0;
  CALL_HOOK(launch_hook(function, sizes, stream, parameters));
}

/* NVRTC itself looks for a driver, and would call functions that are not here. */
int cuInit(unsigned flags) { return (void)flags, 100; }
int cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
int cuCtxSetCurrent(void* context) { return (void)context, 0; }
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  return (void)attribute, (void)function, *value = 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  return (void)function, (void)attribute, (void)value, 0;
}

int cuGetErrorName(int error, const char** text) {
  *text = error == 1     ? "CUDA_ERROR_INVALID_VALUE"
          : error == 2   ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == 400 ? "CUDA_ERROR_INVALID_HANDLE"
          : error == 500 ? "CUDA_ERROR_NOT_FOUND"
          : error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == 900 ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
          : error == 906 ? "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"
                         : "CUDA_ERROR_UNKNOWN";
  return 0;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == 400   ? "invalid resource handle"
          : error == 500 ? "named symbol not found"
                         : "said by the pretended driver";
  return 0;
}

/* How the kernels of the thread treat denormal floats: kept, or flushed to zero as -ftz=true does. */
void pretended_flush_denormals(int flush) {
  const unsigned both = 0x8040; /* results, and operands */
  _mm_setcsr(flush ? _mm_getcsr() | both : _mm_getcsr() & ~both);
}
