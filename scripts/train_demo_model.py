"""Trains the bundled demo model on stories of story_grammar.py and writes it as one of our files.

    python scripts/train_demo_model.py pyllama2/models/stories.bin --work work --minutes 11
    python scripts/train_demo_model.py pyllama2/models/stories.bin --work work --minutes 8 --lr 2e-3

The stories, the tokenizer and the weights are made from --seed. Training may be stopped with Ctrl-C and taken up again
with the same --work folder; the model that is written is the one after the last step. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F

from pyllama2 import quantize
from pyllama2.config import ModelConfig
from pyllama2.model import Transformer
from pyllama2.modelfile import ModelFile, ModelWriter
from pyllama2.tokenizer import TokenizerSpec
from pyllama2.weights import Quantization, Weight

sys.path.insert(0, str(Path(__file__).resolve().parent))

from story_grammar import story

BOS, EOS = 1, 2
PADDING = -1
SOURCE = "scripts/train_demo_model.py on stories of scripts/story_grammar.py"


@dataclass(frozen=True)
class Corpus:
    """Stories as rows of token ids, int64 (stories, length), between BOS and EOS and padded with PADDING.

    A row holds one story alone, so that whatever is seen before a token belongs to its story.
    """

    tokenizer: bytes
    training: torch.Tensor
    held_out: torch.Tensor
    bytes_per_token: float  # of the held-out text


def train_tokenizer(texts: list[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model with byte fallback, so that any text can be encoded."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
        unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def make_corpus(n_stories: int, vocab_size: int, longest: int, seed: int) -> Corpus:
    """Distinct stories, cut off at so many tokens, a fiftieth of them held out."""
    rng = random.Random(seed)
    texts = list(dict.fromkeys(story(rng) for _ in range(n_stories)))
    tokenizer = train_tokenizer(texts[:5000], vocab_size)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    encoded = [[BOS, *ids, EOS][:longest] for ids in processor.encode(texts)]
    length = max(map(len, encoded))
    rows = torch.full((len(texts), length), PADDING)
    for row, ids in zip(rows, encoded, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    n_held_out = max(1, len(texts) // 50)
    n_bytes = sum(len(text.encode()) for text in texts[:n_held_out])
    n_tokens = int((rows[:n_held_out] != PADDING).sum())
    return Corpus(tokenizer, rows[n_held_out:], rows[:n_held_out], n_bytes / n_tokens)


def initialise(model: Transformer) -> None:
    """Normal weights of 0.02, those that write into the residual stream smaller the more layers there are."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            into_residual = name.endswith(("wo.weight", "w2.weight"))
            std = 0.02 / math.sqrt(2 * model.config.n_layers) if into_residual else 0.02
            torch.nn.init.normal_(parameter, std=std)


def loss_of(model: Transformer, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each token of rows (B, T) after the first; padding does not count."""
    logits = model(rows[:, :-1].clamp(min=0))
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=PADDING)


def held_out_loss(model: Transformer, corpus: Corpus) -> float:
    """Loss in nats per token on held-out stories."""
    with torch.inference_mode():
        return float(loss_of(model, corpus.held_out[:64]))


class Training:
    """Model, optimizer and step number, which a checkpoint file keeps."""

    def __init__(self, config: ModelConfig, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model = Transformer(config)
        initialise(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
        self.step = 0
        self.path = Path(args.work) / "training.pt" if args.work else None
        if self.path and self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        """Keep the state in the work folder, if there is one."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
            torch.save(state, self.path)

    def run(self, corpus: Corpus) -> None:
        """Train until --steps or --minutes are over; the learning rate warms up and falls with a cosine."""
        args, started = self.args, time.monotonic()
        try:
            while self.step < args.steps:
                minutes = (time.monotonic() - started) / 60
                done = max(self.step / args.steps, minutes / args.minutes)
                if done >= 1:
                    break
                rate = args.lr * min(1, (self.step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                generator = torch.Generator().manual_seed(args.seed * 1_000_003 + self.step)
                chosen = torch.randint(len(corpus.training), (args.batch,), generator=generator)
                rows = corpus.training[chosen]
                rows = rows[:, : int((rows != PADDING).sum(1).max())]
                loss = loss_of(self.model, rows)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.step += 1
                if self.step % 100 == 0 or self.step == args.steps:
                    self.report(corpus, loss.item(), minutes)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        self.save()

    def report(self, corpus: Corpus, loss: float, minutes: float) -> None:
        """A line of figures."""
        held_out = held_out_loss(self.model, corpus)
        print(
            f"step {self.step}  {minutes:.1f} min  loss {loss:.4f}  held out {held_out:.4f} nats/token, "
            f"{held_out / math.log(2) / corpus.bytes_per_token:.4f} bits/byte",
            file=sys.stderr,
        )


def write(model: Transformer, tokenizer: bytes, out: Path) -> None:
    """The model as one of our files: q8 with groups of 32."""
    spec = TokenizerSpec("sentencepiece", tokenizer, BOS, (EOS,), add_bos=True)
    floats = ModelFile(model.config, Quantization.of("float32"), spec, source=SOURCE)
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the model file to write")
    parser.add_argument("--work", help="folder of the checkpoint that training is taken up from")
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--steps", type=int, default=100_000, help="at most so many")
    parser.add_argument("--stories", type=int, default=60_000)
    parser.add_argument("--vocab-size", type=int, default=768)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="more than one seldom helps with matrices this small")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # tiny gradients of a tied embedding would slow every product down
    corpus = make_corpus(args.stories, args.vocab_size, args.context + 1, args.seed)
    config = ModelConfig(
        dim=args.dim, hidden_dim=args.dim * 11 // 4 // 32 * 32, n_layers=args.layers, n_heads=8, n_kv_heads=4,
        head_dim=args.dim // 8, vocab_size=args.vocab_size, max_seq_len=args.context, tied_embeddings=True,
    )  # fmt: skip
    print(f"{config.n_parameters} parameters, {len(corpus.training)} stories to train on", file=sys.stderr)
    training = Training(config, args)
    training.run(corpus)
    write(training.model, corpus.tokenizer, args.out)
    print(f"wrote {args.out}, {args.out.stat().st_size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
