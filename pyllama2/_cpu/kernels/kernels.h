/* The inner loops of the CPU backend: one table of functions per instruction set.
 *
 * types.h       their arguments, and what a table has
 * vector.h      vector types, and float16 by hand
 * portable.h    steps written once with vector types: included by every table
 * scalar.h      the table for any machine, and the definition of what each product computes
 * tiles256.h    products with 256-bit integer vectors: included by the x86 tables, each with its dot product
 * tiles512.h    the same with 512-bit vectors: included by the table with AVX-512
 * streams256.h  products that read several streams: included by the table with AVX2
 * tiles128.h    products with 128-bit vectors: included by the ARM tables
 * blocks.h      products of any number of columns, made of those tiles
 * panels.h      products of packed panels, with vectors of 256 or 512 bits: included by the x86 tables
 * attention.h   attention to a span of the cache, with vectors of any width: included by every table
 * quantize.h    the search for q4's scales, with vectors of any width: included by every table
 * avx2.h        two tables for x86-64: with AVX2, FMA and F16C; and with AVX-VNNI, too
 * avx512.h      the table for x86-64 with AVX-512 and its VNNI
 * neon.h        two tables for 64-bit ARM: without dot product instructions, and with them
 *
 * Nothing is compiled for the build machine's CPU: functions have target attributes, and kernels_find() takes the best
 * table that the CPU can run. All floating-point contraction is off (setup.py). So whatever is not an explicit fused
 * multiply-add gives the same bits everywhere. q8 and q4 products have one per group, in the same place in each table.
 *
 * Compiled once, in dispatch.pyx.
 */
#ifndef PYLLAMA2_KERNELS_H
#define PYLLAMA2_KERNELS_H

#include "types.h"

#include "scalar.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#else
static inline int amd_family(void) { return 0; }
#if defined(__aarch64__)
#include "neon.h"
#endif
#endif

/* The table called name, or the best one when name is NULL or empty; NULL when this CPU cannot run it. */
static inline const Kernels* kernels_find(const char* name) {
  const Kernels* tables[] = {
#if defined(__x86_64__)
      cpu_has_avx512() ? cpu_halves_avx512() ? &kernels_avx512_halves : &kernels_avx512 : NULL,
      cpu_has_avx_vnni() ? &kernels_avx_vnni : NULL,
      cpu_has_avx2() ? &kernels_avx2 : NULL,
#elif defined(__aarch64__)
      cpu_has_neon_dotprod() ? &kernels_neon_dotprod : NULL,
      &kernels_neon, /* every CPU with 64-bit ARM has it */
#endif
      &kernels_scalar,
  };
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
    if (tables[i] && (!name || !*name || strcmp(tables[i]->name, name) == 0)) return tables[i];
  return NULL;
}

#endif
