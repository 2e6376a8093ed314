"""What g++ cannot read of CUDA source is rewritten in place: dynamic shared memory, inline assembly, launch bounds.

    extern __shared__ float s[];   ->  float* s = reinterpret_cast<float*>(emulator_dynamic_storage);
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c))
                                   ->  { emulator_ptx::lop3_b32(d, a, b, c, 0xea); }

    __launch_bounds__(256)         ->  the kernel begins with emulator_launch_bounds(256);

All else is compiled as it stands. An instruction that include/emulator/ptx.h does not have is an error of the compiler,
with its line.
"""

from __future__ import annotations

import re

_DYNAMIC = re.compile(r"extern\s+__shared__\s+([^;\[\]]*?)(\w+)\s*\[\s*\]\s*;")
_ALIGNMENT = re.compile(r"(?:__align__|alignas)\s*\([^)]*\)")
_ASM = re.compile(r"\b(?:asm|__asm__)\b(?:\s+|__)*(?:volatile|__volatile__)?\s*\(")
_KERNEL = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^;{]*?\)\s*)?void\s+(?:__launch_bounds__\s*\([^;{]*?\)\s*)?(\w+)\s*\("
)
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
_STRONG = re.compile(r"\.(?:cg|cv|relaxed|acquire|volatile)\b")


def without_comments(code: str) -> str:
    """The same text with every comment replaced by spaces, its lines kept."""

    def blank(match: re.Match[str]) -> str:
        text = match.group()
        return text if text[0] in "\"'" else re.sub(r"[^\n]", " ", text)

    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|(?<!\w)\'(?:[^\'\\\n]|\\.)*\'', blank, code, flags=re.DOTALL)


def rewrite(code: str) -> str:
    """CUDA source as g++ can compile it behind include/emulator/device.h."""
    code = _DYNAMIC.sub(_dynamic_shared, without_comments(code))
    parts, at = [], 0
    while match := _ASM.search(code, at):
        end = _closing(code, match.end() - 1)
        parts += [code[at : match.start()], _assembly(code[match.end() : end])]
        line_end = "\\\n" if "\\\n" in code[match.start() : end] else "\n"  # within a macro
        parts.append(line_end * code.count("\n", match.start(), end))
        at = end + 1
    return _with_launch_bounds("".join([*parts, code[at:]]))


def extern_c_kernels(code: str) -> list[str]:
    """The kernels of preprocessed source that can be looked up by their plain name, in their order."""
    code, names = without_comments(code), []
    for match in _KERNEL.finditer(code):
        start = max(code.rfind(c, 0, match.start()) for c in ";}{")
        block = code.rfind('extern "C"', 0, match.start())
        inside = block >= 0 and re.match(r'extern "C"\s*\{', code[block:]) and _is_open(code[block : match.start()])
        if 'extern "C"' in code[start + 1 : match.start()] or inside:
            names.append(match.group(1))
    return list(dict.fromkeys(names))


def _is_open(text: str) -> bool:
    return text.count("{") > text.count("}")


def _with_launch_bounds(code: str) -> str:
    """Kernels with __launch_bounds__ check the size of their blocks first."""
    parts, at = [], 0
    for match in re.finditer(r"\b__launch_bounds__\s*\(", code):
        end = _closing(code, match.end() - 1)
        opening = code.find("(", end + 1)
        if opening < 0:
            break
        body = re.compile(r"\s*\{").match(code, _closing(code, opening) + 1)
        if body:
            parts += [code[at : body.end()], f" emulator_launch_bounds({code[match.end() : end]});"]
            at = body.end()
    return "".join([*parts, code[at:]])


def _dynamic_shared(match: re.Match[str]) -> str:
    kind = " ".join(_ALIGNMENT.sub("", match.group(1)).split())
    lines = "\n" * match.group().count("\n")
    return f"{kind}* {match.group(2)} = reinterpret_cast<{kind}*>(emulator_dynamic_storage);{lines}"


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`; strings are passed over."""
    depth = 0
    for token in re.compile(r'"(?:[^"\\]|\\.)*"|[()]').finditer(text, opening):
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        if depth == 0:
            return token.start()
    raise ValueError("an asm statement is not closed")


def _split(text: str, separator: str) -> list[str]:
    """Text split at a separator outside of strings and brackets."""
    parts, depth, start = [], 0, 0
    for token in re.compile(r'"(?:[^"\\]|\\.)*"|::|[][(){}]|' + re.escape(separator)).finditer(text):
        found = token.group()
        if found in "([{":
            depth += 1
        elif found in ")]}":
            depth -= 1
        elif (found == separator or (found == "::" and separator == ":")) and depth == 0:
            parts.append(text[start : token.start()])
            if found == "::":
                parts.append("")
            start = token.end()
    return [*parts, text[start:]]


def _assembly(statement: str) -> str:
    sections = [section.strip() for section in _split(statement, ":")]
    template = "".join(_LITERAL.findall(sections[0])).replace("\\n", "\n").replace("\\t", " ")
    operands = []
    for section in sections[1:3]:
        for operand in _split(section, ",") if section else []:
            operands.append(operand[operand.index("(") :].strip())
    calls = [_instruction(line.strip(), operands) for line in re.split(r"[;\n]", template) if line.strip()]
    return "{ " + " ".join(calls) + " }"


def _instruction(text: str, operands: list[str]) -> str:
    name, _, rest = text.partition(" ")
    arguments = [part for part in re.split(r"[\s,{}\[\]]+", rest) if part]
    values = [re.sub(r"%(\d+)", lambda m: operands[int(m.group(1))], argument) for argument in arguments]
    if name == "membar.gl" or name.startswith("fence."):
        return "emulator_fence();"
    if name == "bar.warp.sync":
        return f"__syncwarp({values[0]});"
    if name in ("bar.sync", "barrier.sync") and arguments == ["0"]:
        return "__syncthreads();"
    if name.startswith(("ld.global", "ld.relaxed", "ld.acquire", "ld.volatile", "st.global")):
        is_load, width = name.startswith("ld"), re.search(r"\.(v[24])", name)
        strength = "_strong" if is_load and _STRONG.search(name) else "_constant" if ".nc" in name else ""
        name = f"{name[:2]}_global{strength}" + (f"_{width.group(1)}" if width else "")
    name = re.sub(r"\.L2::\w+", "", name)
    return f"emulator_ptx::{re.sub(r'[.:]+', '_', name)}({', '.join(values)});"
