"""Trains the bundled demo model on stories of story_grammar.py and writes it as one of our files.

    python scripts/demo_model/train_demo_model.py pyllama2/data/stories.bin --work work --curve docs/demo-loss.svg

The stories, the tokenizer, the order of the stories and the first weights follow from --seed. Training saves its state
in the --work folder. Ctrl-C stops it, and the same command resumes it. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F

from pyllama2 import quantize
from pyllama2.config import ModelConfig
from pyllama2.model import Transformer
from pyllama2.storage.model_file import ModelWriter, StoredModel
from pyllama2.storage.weights import Quantization, Weight
from pyllama2.tokenizer.base import TokenizerSpec

sys.path.insert(0, str(Path(__file__).resolve().parent))

from story_grammar import held_out_stories, training_stories

BOS, EOS = 1, 2
PADDING = -1
SOURCE = "scripts/demo_model/train_demo_model.py on stories of scripts/demo_model/story_grammar.py"


@dataclass(frozen=True)
class Corpus:
    """Stories as rows of token ids, int64 (stories, length), between BOS and EOS and padded with PADDING.

    A row holds one story, so that a token sees nothing of another story.
    """

    tokenizer: bytes
    training: torch.Tensor
    held_out: torch.Tensor
    bytes_per_token: float  # in the held-out text


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> bytes:
    """Train a SentencePiece BPE model. It has byte fallback, so that it can encode any text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
        unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def make_corpus(n_stories: int, vocab_size: int, longest: int, seed: int) -> Corpus:
    """Make the first n_stories training stories and held-out stories, without those of more than longest tokens."""
    texts, held_out = training_stories(n_stories, seed), held_out_stories(max(2, min(500, n_stories // 20)), seed)
    tokenizer = train_tokenizer(texts[:10_000], vocab_size)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)

    def rows(stories: Sequence[str]) -> torch.Tensor:
        encoded = [ids for ids in ([BOS, *ids, EOS] for ids in processor.encode(list(stories))) if len(ids) <= longest]
        padded = torch.full((len(encoded), max(map(len, encoded))), PADDING)
        for row, ids in zip(padded, encoded, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return padded

    training, held_rows = rows(texts), rows(held_out)
    n_bytes = sum(len(processor.decode(row[row > EOS].tolist()).encode()) for row in held_rows)
    return Corpus(tokenizer, training, held_rows, n_bytes / int((held_rows > EOS).sum()))


def initialise(model: Transformer) -> None:
    """Draw normal weights that keep the length of vectors.

    With more layers, the matrices that write to the residual stream start smaller. Embeddings start large enough that
    the model can tell similar words apart.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            into_residual = name.endswith(("wo.weight", "w2.weight"))
            std = parameter.shape[1] ** -0.5 / (math.sqrt(2 * model.config.n_layers) if into_residual else 1)
            torch.nn.init.normal_(parameter, std=std)


def loss_of(model: Transformer, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy in nats of the tokens of rows (B, T) after the first, without padding."""
    rows = rows[:, : int((rows != PADDING).sum(1).max())]
    logits = model(rows[:, :-1].clamp(min=0))
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=PADDING)


def held_out_loss(model: Transformer, corpus: Corpus) -> float:
    """Return the loss on held-out stories, in nats per token."""
    with torch.inference_mode():
        return float(loss_of(model, corpus.held_out[:64]))


def batch_of(corpus: Corpus, args: argparse.Namespace, step: int) -> torch.Tensor:
    """Return the stories of a step. Each pass through the corpus has a new random order."""
    n_stories = len(corpus.training)
    rows = torch.arange(step * args.batch, (step + 1) * args.batch)
    orders = {
        round_: torch.randperm(n_stories, generator=torch.Generator().manual_seed(args.seed * 1_000_003 + round_))
        for round_ in set((rows // n_stories).tolist())
    }
    return corpus.training[[int(orders[int(row) // n_stories][int(row) % n_stories]) for row in rows]]


def set_up_worker() -> None:
    """Make the settings of PyTorch that each thread has for itself."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # tiny gradients of a tied embedding would slow every product down


class Training:
    """The state of a training, which a file keeps: model, optimizers, step number and losses so far."""

    def __init__(self, config: ModelConfig, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model = Transformer(config)
        initialise(self.model)
        matrices = [p for name, p in self.model.named_parameters() if name.startswith("layers.") and p.dim() == 2]
        others = [p for name, p in self.model.named_parameters() if not (name.startswith("layers.") and p.dim() == 2)]
        # Muon makes a step that changes all directions of a matrix equally, so rare things are learned too
        # (arXiv:2502.16982). It is not meant for embeddings and norms.
        self.optimizers = (
            torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )
        self.workers = ThreadPoolExecutor(args.threads, initializer=set_up_worker)
        self.step = 0
        self.losses: list[tuple[int, float, float]] = []  # step, mean training loss since the last, held-out loss
        self.path = Path(args.work) / "training.pt" if args.work else None
        if self.path and self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.losses = state["step"], state["losses"]

    def save(self) -> None:
        """Save the state in the work folder, if there is one."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
            state = {"model": self.model.state_dict(), "optimizers": optimizers}
            temporary = self.path.with_suffix(".tmp")
            torch.save(state | {"step": self.step, "losses": self.losses}, temporary)
            temporary.replace(self.path)

    def set_gradients(self, rows: torch.Tensor) -> float:
        """Compute the gradients for these stories, and return the loss.

        Each thread computes a share of the stories. Threads inside of a product gain little, since the matrices are
        small.
        """
        parameters = list(self.model.parameters())

        def gradients(part: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
            share = (part[:, 1:] != PADDING).sum() / (rows[:, 1:] != PADDING).sum()
            loss = loss_of(self.model, part) * share
            return float(loss.detach()), torch.autograd.grad(loss, parameters)

        losses, parts = zip(*self.workers.map(gradients, rows.chunk(self.args.threads)), strict=True)
        for parameter, *shares in zip(parameters, *parts, strict=True):
            parameter.grad = sum(shares[1:], start=shares[0])
        return sum(losses)

    def rate(self) -> float:
        """The learning rate warms up in a straight line and falls to zero with a cosine."""
        warm_up = min(1.0, (self.step + 1) / self.args.warm_up)
        return self.args.lr * warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.args.steps))

    def run(self, corpus: Corpus) -> None:
        """Train until --steps are done, or Ctrl-C."""
        args, started, first = self.args, time.monotonic(), self.step
        recent: list[float] = []
        try:
            while self.step < args.steps:
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = self.rate()
                loss = self.set_gradients(batch_of(corpus, args, self.step))
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                self.step += 1
                recent.append(loss)
                if self.step % 100 == 0 or self.step == args.steps:
                    self.losses.append((self.step, sum(recent) / len(recent), held_out_loss(self.model, corpus)))
                    recent.clear()
                    self.report(corpus, (time.monotonic() - started) / (self.step - first))
                    self.save()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        self.save()

    def report(self, corpus: Corpus, seconds: float) -> None:
        """Print a line of figures."""
        step, loss, held_out = self.losses[-1]
        print(
            f"step {step}  {seconds:.2f} s/step  loss {loss:.4f}  held out {held_out:.4f} nats/token, "
            f"{held_out / math.log(2) / corpus.bytes_per_token:.4f} bits/byte",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def draw(losses: Sequence[tuple[int, float, float]], path: Path) -> None:
    """Draw the loss curve in colours that can be read on white and on black."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "pyllama2", "svg.fonttype": "none"})
    steps, training, held_out = zip(*losses, strict=True)
    figure, axes = plt.subplots(figsize=(7, 3.5))
    axes.plot(steps, training, color="#d07030", label="training stories")
    axes.plot(steps, held_out, color="#3080d0", label="held-out stories")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.set_yscale("log")
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.legend(frameon=False).get_texts()):
        text.set_color("#808080")
    axes.tick_params(which="both", colors="#808080")
    for spine in axes.spines.values():
        spine.set_color("#808080")
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)


def write(model: Transformer, tokenizer: bytes, out: Path) -> None:
    """Write the model as one of our files, in q8 with groups of 32."""
    spec = TokenizerSpec("sentencepiece", tokenizer, BOS, (EOS,), add_bos=True)
    floats = StoredModel(model.config, Quantization.of("float32"), spec, source=SOURCE)
    unquantized = out.with_suffix(".float32")
    state = model.state_dict()
    try:
        with ModelWriter(unquantized, floats) as writer:
            for name, shape in model.config.tensor_shapes().items():
                writer.write(Weight(name, "float32", shape, state[name].numpy().astype(np.float32)))
        quantize(unquantized, out, "q8", group_size=32)
    finally:
        unquantized.unlink(missing_ok=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the model file to write")
    parser.add_argument("--work", help="folder of the checkpoint that training is taken up from")
    parser.add_argument("--curve", type=Path, help="a picture of the losses to write, .svg or .png")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--stories", type=int, default=11_000)
    parser.add_argument("--vocab-size", type=int, default=3072)
    parser.add_argument("--dim", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--longest", type=int, default=210, help="tokens of the longest story that is trained on")
    parser.add_argument("--batch", type=int, default=16, help="stories of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--warm-up", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    corpus = make_corpus(args.stories, args.vocab_size, args.longest, args.seed)
    config = ModelConfig(
        dim=args.dim, hidden_dim=args.dim * 8 // 3 // 32 * 32, n_layers=args.layers, n_heads=args.dim // 32,
        n_kv_heads=args.dim // 64, head_dim=32, vocab_size=args.vocab_size, max_seq_len=args.context,
        tied_embeddings=True,
    )  # fmt: skip
    n_tokens = int((corpus.training != PADDING).sum())
    print(
        f"{config.n_parameters} parameters, {len(corpus.training)} stories of {n_tokens} tokens to train on",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    training = Training(config, args)
    training.run(corpus)
    write(training.model, corpus.tokenizer, args.out)
    if args.curve and training.losses:
        draw(training.losses, args.curve)
    print(f"wrote {args.out}, {args.out.stat().st_size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
