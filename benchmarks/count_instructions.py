"""Counts the instructions of steps of 1, 4 and 8 tokens, and of a prompt of 16. Other programs do not disturb a count.

    python benchmarks/count_instructions.py            count, and show the change to instruction_counts.json
    python benchmarks/count_instructions.py --check    count, and exit with 1 if a count grew by more than 5%
    python benchmarks/count_instructions.py --write    count, and replace the table

Needs valgrind (apt install valgrind). It cannot run AVX-512, so the AVX2 kernels are counted, with one thread. The
model is small and always the same (MODEL), with random weights. Only Forward.run is counted, without the Python around
it. Counts depend on the compiler and its version. Fewer instructions are not always faster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "scripts" / "random_models")]

TABLE = HERE / "instruction_counts.json"
TYPES = ("q4", "q8", "float16", "float32")
MODEL = {
    "dim": 512,
    "hidden_dim": 1408,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_seq_len": 64,
}
PROMPT = 16
STEPS = {"decode": 1, "4 tokens": 4, "8 tokens": 8}  # after it
MOST_GROWTH = 0.05
# The Python method of forward.pyx in the compiled module, with all that it calls.
_COUNTED = "__pyx_pw_8pyllama2_4_cpu_7forward_7Forward_*run"
_ENVIRONMENT = {"PYLLAMA2_CPU_ISA": "avx2", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def run_model(path: str, n: int) -> None:
    """Run what is counted: a prompt, and a step of n tokens after it; 0: none."""
    from pyllama2._cpu import CpuBackend
    from pyllama2.backend.base import Batch
    from pyllama2.storage.model_file import StoredModel

    backend = CpuBackend(StoredModel.open(path), n_threads=1)
    cache = backend.new_cache(1, PROMPT + n)
    backend.forward(Batch.of_sequence(list(range(PROMPT))), cache)
    if n:
        backend.forward(Batch.of_sequence(list(range(n)), start=PROMPT, outputs="all"), cache)


def count(path: str, n: int, folder: str) -> int:
    """Return the number of instructions of run_model()."""
    out = os.path.join(folder, "callgrind.out")
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--toggle-collect={_COUNTED}"]
    command += [sys.executable, os.path.abspath(__file__), "--run", path, str(n)]
    result = subprocess.run(command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"valgrind failed:\n{result.stderr}")
    with open(out) as file:
        total = next(int(line.split()[1]) for line in file if line.startswith(("summary:", "totals:")))
    if total == 0:
        raise SystemExit(f"no function is called {_COUNTED}; was pyllama2 built with symbols?")
    return total


def count_all() -> dict[str, dict[str, int]]:
    """Count the instructions of a prompt and of each of STEPS, for each type of weights."""
    from make_random_model import RandomWeights, write_native

    from pyllama2.config import ModelConfig

    config = ModelConfig(**MODEL)
    weights = RandomWeights(config, seed=0)
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for type in TYPES:
            path = os.path.join(folder, f"{type}.bin")
            write_native(path, config, weights, type)
            prompt = count(path, 0, folder)
            counts[type] = {"prompt": prompt}
            counts[type] |= {name: count(path, n, folder) - prompt for name, n in STEPS.items()}
    return counts


def compiler() -> str:
    """Return the first line that the C compiler prints for --version."""
    name = os.environ.get("CC", "gcc").split()[0]
    found = shutil.which(name)
    return subprocess.run([found, "--version"], capture_output=True, text=True).stdout.split("\n")[0] if found else name


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help=f"exit with 1 when a count grew by {MOST_GROWTH:.0%}")
    parser.add_argument("--write", action="store_true", help="replace the table")
    parser.add_argument("--run", nargs=2, metavar=("MODEL", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_model(options.run[0], int(options.run[1]))
        return 0
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed (apt install valgrind)")
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"counts": {}}
    counts = count_all()
    grown = False
    print("| weights | | instructions | before | change |\n|---|---|---|---|---|")
    for type, steps in counts.items():
        for step, new in steps.items():
            old = table["counts"].get(type, {}).get(step)
            change = "" if old is None else f"{new / old - 1:+.1%}"
            grown |= old is not None and new > old * (1 + MOST_GROWTH)
            print(f"| {type} | {step} | {new:,} | {'' if old is None else f'{old:,}'} | {change} |")
    if table.get("compiler") != compiler():
        print(f"\nThe table was made with {table.get('compiler')}, this is {compiler()}.")
    if options.write:
        TABLE.write_text(json.dumps({"compiler": compiler(), "counts": counts}, indent=2) + "\n")
    return int(options.check and grown)


if __name__ == "__main__":
    sys.exit(main())
