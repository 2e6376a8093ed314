#!/usr/bin/env bash
# Compares every function of the CPU kernels' tables with the scalar ones (tests/kernels/compare_tables.c).
# Usage: scripts/check_kernels.sh native             on this machine
#        scripts/check_kernels.sh aarch64 [CPU]      on an emulated 64-bit ARM: max (the default), cortex-a57, ...
# The second needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The flags of setup.py, and more warnings.
flags=(-Wall -Wextra -Werror -O3 -std=gnu11 -ffp-contract=off -fno-math-errno -Wno-psabi -Wno-unused-function)
case ${1:-} in
  native)
    ${CC:-gcc} "${flags[@]}" tests/kernels/compare_tables.c -o "$scratch/compare" -lm
    "$scratch/compare"
    ;;
  aarch64)
    emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
    ${CROSS_CC:-aarch64-linux-gnu-gcc} "${flags[@]}" -static tests/kernels/compare_tables.c -o "$scratch/compare" -lm
    "$emulator" -cpu "${2:-max}" "$scratch/compare"
    ;;
  *) sed -n '2,5p' "$0"; exit 2 ;;
esac
