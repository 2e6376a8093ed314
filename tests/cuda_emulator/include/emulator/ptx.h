// Instructions that kernels write as inline assembly. rewriting.py turns each of them into a call of the function that
// has its name here (dots and colons become underscores), with the operands in the order of the text.
#pragma once

namespace emulator {

#define EMULATOR_SITE __builtin_return_address(0)

template <class P>
EMULATED const char* bytes_at(P address) {
  return reinterpret_cast<const char*>(address);
}

EMULATED char* shared_at(unsigned address) { return emulator_dynamic_storage + static_cast<int>(address); }

}  // namespace emulator

EMULATED size_t __cvta_generic_to_shared(const void* address) {
  return static_cast<unsigned>(static_cast<const char*>(address) - emulator_dynamic_storage);
}

namespace emulator_ptx {

using namespace emulator;

// ---- loads of global memory: ld.global[.nc][.cache hints][.v2 .v4].type; rewriting.py passes the hints by.

using Hook = void (*)(const void*, int, const void*);

template <class Word>
UNCHECKED void load(const char* from, int n, Hook hook, const void* site, Word* a, Word* b, Word* c, Word* d) {
  hook(from, n * sizeof(Word), site);
  Word* words[] = {a, b, c, d};
  for (int i = 0; i < n; i++) __builtin_memcpy(words[i], from + i * sizeof(Word), sizeof(Word));
}

#define EMULATOR_LOADS(name, hook)                                                        \
  template <class Word, class P>                                                          \
  UNCHECKED void name(Word& a, P address) {                                               \
    load<Word>(bytes_at(address), 1, hook, EMULATOR_SITE, &a, nullptr, nullptr, nullptr); \
  }                                                                                       \
  template <class Word, class P>                                                          \
  UNCHECKED void name##_v2(Word& a, Word& b, P address) {                                 \
    load<Word>(bytes_at(address), 2, hook, EMULATOR_SITE, &a, &b, nullptr, nullptr);      \
  }                                                                                       \
  template <class Word, class P>                                                          \
  UNCHECKED void name##_v4(Word& a, Word& b, Word& c, Word& d, P address) {               \
    load<Word>(bytes_at(address), 4, hook, EMULATOR_SITE, &a, &b, &c, &d);                \
  }
EMULATOR_LOADS(ld_global, emulator_read)
EMULATOR_LOADS(ld_global_constant, emulator_read_constant)
EMULATOR_LOADS(ld_global_strong, emulator_read_past_l1)

template <class Word>
UNCHECKED void store(char* to, int n, const void* site, Word a, Word b, Word c, Word d) {
  emulator_write(to, n * sizeof(Word), site);
  const Word words[] = {a, b, c, d};
  __builtin_memcpy(to, words, n * sizeof(Word));
}
template <class P, class Word>
UNCHECKED void st_global(P address, Word a) {
  store<Word>(const_cast<char*>(bytes_at(address)), 1, EMULATOR_SITE, a, a, a, a);
}
template <class P, class Word>
UNCHECKED void st_global_v2(P address, Word a, Word b) {
  store<Word>(const_cast<char*>(bytes_at(address)), 2, EMULATOR_SITE, a, b, a, a);
}
template <class P, class Word>
UNCHECKED void st_global_v4(P address, Word a, Word b, Word c, Word d) {
  store<Word>(const_cast<char*>(bytes_at(address)), 4, EMULATOR_SITE, a, b, c, d);
}

// A device passes over an address that is not there. Here it is a finding: nothing else would show a wrong one.
template <class P>
UNCHECKED void prefetch_global_L2(P address) {
  emulator_prefetch(bytes_at(address), EMULATOR_SITE);
}

// ---- integers

EMULATED void lop3_b32(unsigned& d, unsigned a, unsigned b, unsigned c, int table) {
  d = 0;
  for (int i = 0; i < 8; i++) {
    if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
}
EMULATED void lop3_b32(int& d, unsigned a, unsigned b, unsigned c, int table) {
  unsigned result;
  lop3_b32(result, a, b, c, table);
  d = static_cast<int>(result);
}
template <class D>
EMULATED void prmt_b32(D& d, unsigned a, unsigned b, unsigned selector) {
  d = static_cast<D>(__byte_perm(a, b, selector));
}
template <class D>
EMULATED void dp4a_s32_s32(D& d, unsigned a, unsigned b, int c) {
  d = dot4<Bytes, Bytes>(a, b, c);
}
template <class D>
EMULATED void dp4a_u32_s32(D& d, unsigned a, unsigned b, int c) {
  d = dot4<UnsignedBytes, Bytes>(a, b, c);
}
template <class D>
EMULATED void dp4a_s32_u32(D& d, unsigned a, unsigned b, int c) {
  d = dot4<Bytes, UnsignedBytes>(a, b, c);
}
template <class D>
EMULATED void dp4a_u32_u32(D& d, unsigned a, unsigned b, int c) {
  d = dot4<UnsignedBytes, UnsignedBytes>(a, b, c);
}
EMULATED void bfe_u32(unsigned& d, unsigned a, unsigned start, unsigned n) {
  d = start > 31 ? 0 : a >> start & (n > 31 ? ~0u : (1u << n) - 1);
}
template <class D>
EMULATED void bfind_u32(D& d, unsigned a) {
  d = static_cast<D>(a ? 31 - __builtin_clz(a) : -1);
}
template <class D>
EMULATED void mov_u32(D& d, unsigned a) {
  d = static_cast<D>(a);
}
EMULATED void ex2_approx_ftz_f32(float& d, float a) { d = exp2f(a); }
EMULATED void ex2_approx_f32(float& d, float a) { d = exp2f(a); }
EMULATED void rcp_approx_ftz_f32(float& d, float a) { d = 1.0f / a; }

#if __CUDA_ARCH__ >= 800
// ---- asynchronous copies to shared memory

template <class P>
UNCHECKED void cp_async_ca_shared_global(unsigned to, P from, int bytes, int source_bytes) {
  emulator_copy_begin(shared_at(to), bytes_at(from), bytes, source_bytes, EMULATOR_SITE);
}
template <class P>
UNCHECKED void cp_async_ca_shared_global(unsigned to, P from, int bytes) {
  emulator_copy_begin(shared_at(to), bytes_at(from), bytes, bytes, EMULATOR_SITE);
}
template <class P>
UNCHECKED void cp_async_cg_shared_global(unsigned to, P from, int bytes, int source_bytes) {
  emulator_copy_begin(shared_at(to), bytes_at(from), bytes, source_bytes, EMULATOR_SITE);
}
template <class P>
UNCHECKED void cp_async_cg_shared_global(unsigned to, P from, int bytes) {
  emulator_copy_begin(shared_at(to), bytes_at(from), bytes, bytes, EMULATOR_SITE);
}
EMULATED void cp_async_commit_group() { emulator_copy_commit(); }
EMULATED void cp_async_wait_group(int groups_left) { emulator_copy_wait(groups_left); }
EMULATED void cp_async_wait_all() {
  emulator_copy_commit();
  emulator_copy_wait(0);
}
#endif

}  // namespace emulator_ptx

#include "tensor_cores.h"
