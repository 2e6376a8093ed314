"""Where a token's time goes: the backend's steps, then sampling and text.

Commands print it with -v. With PYLLAMA2_PROFILE=1 every Llama prints it when it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepTime:
    """One step of the forward pass, summed over all layers and calls.

    Attributes:
        name: the step's name in model.py.
        decode_s: seconds in passes with few tokens.
        prompt_s: seconds in passes with many tokens.
        weight_bytes: bytes of weights that one pass reads.
    """

    name: str
    decode_s: float
    prompt_s: float
    weight_bytes: int = 0


@dataclass(frozen=True)
class Profile:
    """Times of all steps since the model was opened.

    Attributes:
        steps: the backend's steps, then sampling. Empty if the backend does not measure them.
        decode_passes: passes with few tokens: decoding of one or several texts.
        decode_tokens: tokens of these passes.
        prompt_tokens: tokens of the other passes.
    """

    steps: tuple[StepTime, ...]
    decode_passes: int
    decode_tokens: int
    prompt_tokens: int

    def __str__(self) -> str:
        """A table: milliseconds per token, share of the time, and GB/s of weights while decoding."""
        decode_s, prompt_s = (sum(getattr(step, name) for step in self.steps) for name in ("decode_s", "prompt_s"))
        width = 2 + max([16, *(len(step.name) for step in self.steps)])
        lines = [f"{'step':<{width}}{'decode ms/token':>17}{'':>7}{'GB/s':>7}{'prompt ms/token':>18}"]
        rows = [*self.steps, StepTime("all", decode_s, prompt_s, sum(step.weight_bytes for step in self.steps))]
        for step in rows:
            decode = _milliseconds(step.decode_s, self.decode_tokens)
            share = f"{step.decode_s / decode_s:.1%}" if decode_s else ""
            rate = step.weight_bytes * self.decode_passes / step.decode_s / 1e9 if step.decode_s else 0.0
            prompt = _milliseconds(step.prompt_s, self.prompt_tokens)
            prompt_share = f"{step.prompt_s / prompt_s:.1%}" if prompt_s else ""
            gb = f"{rate:.1f}" if rate else ""
            lines.append(f"{step.name:<{width}}{decode:>17}{share:>7}{gb:>7}{prompt:>18}{prompt_share:>7}")
        rates = [
            f"{what} {n / seconds:.1f} tokens/s"
            for what, n, seconds in (
                ("decode", self.decode_tokens, decode_s),
                ("prompt", self.prompt_tokens, prompt_s),
            )
            if n and seconds
        ]
        return "\n".join([*lines, ", ".join(rates)])


def _milliseconds(seconds: float, tokens: int) -> str:
    return f"{seconds * 1e3 / tokens:.4f}" if tokens else ""
