"""Trains the demo model that is bundled with the package, on stories that scripts/stories composes.

    python scripts/train_demo_model.py pyllama2/models/stories.bin --minutes 15
    python scripts/train_demo_model.py small.bin --steps 200 --dim 64 --hidden-dim 192 --layers 2

Stories, tokenizer and weights are made from --seed. Every training window begins at the start of a
story and runs on into the next ones. --checkpoint keeps the state of the training in a file, from
which --resume goes on. Figures go to stderr; losses are in nats per token.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import sys
import time
from typing import Any

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from stories.story import tell

from pyllama2._cpu import quantize_matrix
from pyllama2.config import ModelConfig
from pyllama2.model import Transformer
from pyllama2.modelfile import ModelFile, ModelWriter
from pyllama2.tokenizer import TokenizerSpec
from pyllama2.weights import Quantization, Weight

UNKNOWN, BOS, EOS = 0, 1, 2
PADDING = -1
# Some stories lack their first steps, so that the model can also go on from a text that begins anywhere.
CUT_SHARE = 0.15
TOKENIZER_STORIES = 8000  # enough for the merges to settle
WARM_UP_STEPS = 100
GROUP_SIZE = 32  # of the quantized weights; divides the default dimensions


class Stories:
    """Stories as token ids, in batches of about equal length: a row is BOS, one story, EOS, and padding.

    One story is alone in its row, so that the model never sees names of another one before it.
    """

    def __init__(self, texts: list[str], processor: sentencepiece.SentencePieceProcessor, batch_size: int) -> None:
        rows = [[BOS, *ids, EOS] for ids in processor.encode(texts)]
        rows.sort(key=len)
        self.batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        self.n_tokens = sum(map(len, rows))

    def batch(self, index: int) -> torch.Tensor:
        """int64 (B, T): rows of the longest one's length, filled up with PADDING."""
        rows = self.batches[index]
        return torch.tensor([row + [PADDING] * (len(rows[-1]) - len(row)) for row in rows])


def compose(n_stories: int, seed: int, cut_share: float) -> list[str]:
    """n_stories different texts."""
    rng = random.Random(seed)
    texts: dict[str, None] = {}  # in the order of their making
    while len(texts) < n_stories:
        steps = tell(rng)
        first = rng.randrange(1, len(steps) - 1) if rng.random() < cut_share else 0
        texts[" ".join(steps[first:])] = None
    return list(texts)


def train_tokenizer(texts: list[str], vocab_size: int) -> bytes:
    """A SentencePiece model: byte-pair encoding, and bytes for all characters that the stories do not have."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=UNKNOWN,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def initialise(model: Transformer) -> None:
    """Normal weights; what is added to the residual stream starts smaller, so that its sum over layers stays small."""
    for name, parameter in model.named_parameters():
        if name.endswith(("wo.weight", "w2.weight")):
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * model.config.n_layers))
        elif not name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=0.02)


def loss_of(model: Transformer, rows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of every token of rows (B, T) after BOS; padding does not count."""
    inputs, targets = rows[:, :-1].clamp(min=0), rows[:, 1:]  # an input that is padding only has targets that are
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction=reduction)


def learning_rate(highest: float, step: int, progress: float) -> float:
    """A short linear warm-up, then half a cosine down to a twentieth; progress runs from 0 to 1."""
    return highest * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.525 + 0.475 * math.cos(math.pi * progress))


class Trainer:
    """A model in training: its weights, the optimizer, and how far it is. Ends after steps or minutes."""

    def __init__(self, config: ModelConfig, args: argparse.Namespace) -> None:
        self.args = args
        self.step = 0
        self.seconds = 0.0
        torch.manual_seed(args.seed)
        self.model = Transformer(config)
        initialise(self.model)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        norms = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    @property
    def progress(self) -> float:
        """Share of the training that is done: of its steps if they are given, else of its time."""
        if self.args.steps is not None:
            return min(1.0, self.step / self.args.steps)
        return min(1.0, self.seconds / (60 * self.args.minutes))

    def train(self, training: Stories, held_out: Stories) -> None:
        """Run to the end, reporting and saving now and then."""
        begun = time.monotonic() - self.seconds
        while self.progress < 1:
            # The order depends on seed and epoch alone, so that a resumed training goes on where it was.
            epoch, index = divmod(self.step, len(training.batches))
            order = np.random.default_rng((self.args.seed, epoch)).permutation(len(training.batches))
            loss = self._update(training.batch(order[index]))
            self.step += 1
            self.seconds = time.monotonic() - begun
            if self.step % self.args.report_every == 0 or self.progress == 1:
                self._report(loss, self.held_out_loss(held_out))
                self.save()

    def _update(self, rows: torch.Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args.learning_rate, self.step, self.progress)
        loss = loss_of(self.model, rows)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def held_out_loss(self, held_out: Stories) -> float:
        """Mean loss per token of stories that are not trained on."""
        total = sum(float(loss_of(self.model, held_out.batch(i), "sum")) for i in range(len(held_out.batches)))
        n_predicted = held_out.n_tokens - sum(map(len, held_out.batches))  # all but the BOS of each
        return total / n_predicted

    def _report(self, loss: float, held_out: float) -> None:
        print(
            f"step {self.step}  {100 * self.progress:.0f}%  {self.seconds:.0f} s  "
            f"loss {loss:.4f}  held out {held_out:.4f}",
            file=sys.stderr,
            flush=True,
        )

    def save(self) -> None:
        """Write the checkpoint, if one is wanted; an interruption leaves the old one."""
        if self.args.checkpoint is None:
            return
        state = {
            "config": self.model.config.to_json(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.args.checkpoint + ".part")
        os.replace(self.args.checkpoint + ".part", self.args.checkpoint)

    def resume(self) -> None:
        """Go on from the checkpoint. Raises ValueError when it is of another model."""
        state: dict[str, Any] = torch.load(self.args.checkpoint, weights_only=True)
        if state["config"] != self.model.config.to_json():
            raise ValueError(f"{self.args.checkpoint} is of a model with other dimensions")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def write_model(path: str, model: Transformer, tokenizer: bytes) -> None:
    """The model as one of our files, quantized to 8 bits."""
    spec = TokenizerSpec("sentencepiece", tokenizer, BOS, (EOS,), add_bos=True)
    source = "trained by scripts/train_demo_model.py on stories composed by scripts/stories"
    file = ModelFile(model.config, Quantization.of("q8", GROUP_SIZE), spec, source=source)
    tensors = model.state_dict()
    with ModelWriter(path, file) as writer:
        for name, shape in model.config.tensor_shapes().items():
            array = tensors[name].numpy()
            if file.quantization.type_of(name, model.config) == "q8":
                codes, scales = quantize_matrix(array, "q8", GROUP_SIZE)
                writer.write(Weight(name, "q8", shape, codes, scales, GROUP_SIZE))
            else:
                writer.write(Weight(name, "float32", shape, array))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the file to write")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=15.0, help="how long to train (default 15)")
    length.add_argument("--steps", type=int, help="how many steps to train, instead of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", metavar="PATH", help="keep the state of the training in this file")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, with the same options")
    parser.add_argument("--report-every", type=int, default=100, metavar="N", help="steps between two reports")
    group = parser.add_argument_group("data")
    group.add_argument("--stories", type=int, default=60_000, help="stories to train on (default 60000)")
    group.add_argument("--held-out", type=int, default=200, help="stories kept for the held-out loss (default 200)")
    group.add_argument("--vocab-size", type=int, default=1024)
    group = parser.add_argument_group("model")
    group.add_argument("--dim", type=int, default=160)
    group.add_argument("--hidden-dim", type=int, default=448)
    group.add_argument("--layers", type=int, default=5)
    group.add_argument("--heads", type=int, default=4)
    group.add_argument("--kv-heads", type=int, default=2)
    group.add_argument("--context", type=int, default=256)
    group = parser.add_argument_group("optimization")
    group.add_argument("--batch-size", type=int, default=12, help="stories of a step (default 12)")
    group.add_argument("--learning-rate", type=float, default=4e-3)
    args = parser.parse_args(arguments)
    if args.resume and args.checkpoint is None:
        parser.error("--resume needs --checkpoint")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Compose, train, write."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # gradients of near-certain tokens are tiny, and very slow as denormal numbers
    config = ModelConfig(
        dim=args.dim,
        hidden_dim=args.hidden_dim,
        n_layers=args.layers,
        n_heads=args.heads,
        n_kv_heads=args.kv_heads,
        head_dim=args.dim // args.heads,
        vocab_size=args.vocab_size,
        max_seq_len=args.context,
        tied_embeddings=True,
    )
    texts = compose(args.held_out + args.stories, args.seed, CUT_SHARE)
    tokenizer = train_tokenizer(texts[args.held_out :][:TOKENIZER_STORIES], args.vocab_size)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    held_out = Stories(texts[: args.held_out], processor, args.batch_size)
    training = Stories(texts[args.held_out :], processor, args.batch_size)
    print(f"{config.n_parameters} parameters, {training.n_tokens} training tokens", file=sys.stderr, flush=True)

    trainer = Trainer(config, args)
    if args.resume:
        trainer.resume()
    trainer.train(training, held_out)
    write_model(args.out, trainer.model, tokenizer)
    print(f"wrote {args.out}, {os.path.getsize(args.out)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
