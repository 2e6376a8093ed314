/* Runs every function of every table that this CPU offers and compares it with the scalar table: quantized products and
 * the steps between products bit for bit, float products and attention bit for bit with plain fused multiply-adds. No Python, so that it
 * runs in an emulator of another CPU; see tests/backend/test_kernels.py.
 *
 * Prints one line per table: its name, how much was compared, and a digest of the results, which is the same for all
 * tables on all machines but for the scalar one, whose float products and attention are not fused. Exits with 1 when anything differs.
 */
#include "attend.h"
#include "products.h"
#include "steps.h"

int main(void) {
  static const char* names[] = {"scalar", "avx2", "avx_vnni", "avx512", "neon", "neon_dotprod"};
  long total_failures = 0;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    const Kernels* table = kernels_find(names[i]);
    if (!table) continue;
    n_failures = n_compared = 0;
    digest = 0xcbf29ce484222325;
    check_steps(table);
    check_products(table);
    check_attention(table);
    printf("%s %ld %016llx\n", table->name, n_compared, (unsigned long long)digest);
    if (n_failures) printf("%s: %ld differences\n", table->name, n_failures);
    total_failures += n_failures;
  }
  return total_failures != 0;
}
