#!/usr/bin/env bash
# Builds the extensions with AddressSanitizer and UndefinedBehaviorSanitizer in a copy, and runs tests or a script there.
# Usage, with the project's virtual environment active:
#     scripts/run_sanitized.sh [pytest arguments]
#     scripts/run_sanitized.sh scripts/NAME.py [its arguments]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" ls-files -z | (cd "$root" && tar --null -T - -cf -) | tar -xf - -C "$copy"
cd "$copy"
PYLLAMA2_SANITIZE=address,undefined python setup.py -q build_ext --inplace
# Python was not built with the sanitizers, so their libraries are preloaded. It leaks at exit, so leaks do not count.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export PYTHONPATH=$copy  # before the checkout, if that is installed
case ${1-} in
  scripts/*.py) cd "$root" && python "$copy/$1" "${@:2}" ;;  # what it writes must outlive the copy
  *) python -m pytest -p no:cacheprovider "$@" ;;
esac
