"""Requests from prompts and chats: token ids, the tokens that end the text, and the seed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import arguments
from ..chat_formats import make_chat_format
from ..chat_formats.base import ChatFormat, Message, split_answer
from ..chat_formats.no_chat import NoChat
from ..constraints import Compiler
from ..constraints.matcher import Grammar
from ..errors import ClosedError
from ..process.forking import renew_after_fork
from ..process.locks import Lock
from ..sampling.params import SEED_LIMIT, SamplingParams
from ..shown import shown_value
from ..tokenizer.base import Tokenizer
from .generation import Request
from .prompt import Prompt, check_chat_length, check_length, checked_ids


@dataclass(frozen=True)
class ChatOptions:
    """How messages become token ids; the arguments of Llama.chat() say more.

    Attributes:
        template: the name of a chat format. None: the model's own.
        allow_markers: whether messages may contain markers of the format.
        continue_final_message: whether the last message is the beginning of the answer.
        template_kwargs: further variables of the template.
    """

    template: str | None = None
    allow_markers: bool = False
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] | None = None


def variants(request: Request, n: int) -> list[Request]:
    """Return n requests that differ in their seeds alone: that of request, and those after it."""
    n = arguments.integer("n", n, 1)
    return [replace(request, seed=(request.seed + i) % SEED_LIMIT) for i in range(n)]


class RequestMaker:
    """Makes the requests of one Llama.

    Args:
        tokenizer: None if the model has none.
        chat_template: the model's own. None if it has none.
        vocab_size: of the model.
        n_ctx: longest prompt in tokens.
        seed: seed of requests that bring none. None: from the system.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, chat_template: str | None, vocab_size: int, n_ctx: int, seed: int | None
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._vocab_size = vocab_size
        self._n_ctx = n_ctx
        self._seeded = seed is not None
        self._random = random.Random(seed)
        self._chat_formats: dict[str | None, ChatFormat] = {}
        self._compiler = None if tokenizer is None else Compiler(tokenizer)
        self._lock = Lock()  # guards the chat formats
        self._closed = False
        renew_after_fork(self, RequestMaker._renew_in_child)

    def _renew_in_child(self) -> None:
        """After os.fork(): use other random numbers than the parent, as Python's random module does."""
        if not self._seeded:
            self._random.seed()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError when it has none, ClosedError when closed."""
        if self._closed:
            raise ClosedError("this Llama is closed")
        if self._tokenizer is None:
            raise ValueError("the model has no tokenizer; give the path of one (--tokenizer PATH, or tokenizer=PATH)")
        return self._tokenizer

    def of_prompt(self, prompt: Prompt, params: SamplingParams, stop_ids: Collection[int] | None = None) -> Request:
        """Make the request to continue a prompt.

        Args:
            prompt: a string or token ids.
            params: checked parameters.
            stop_ids: those of an earlier request with the same params. None: they are computed.
        """
        ids = self.prompt_ids(prompt)
        echo = "" if not params.echo else prompt if isinstance(prompt, str) else self.tokenizer.decode(ids)
        stop_ids = self._stop_ids(params) if stop_ids is None else stop_ids
        return Request(ids, params, self._seed(params), stop_ids, echo, grammar=self.grammar(params))

    def of_chat(self, messages: Sequence[Message], params: SamplingParams, options: ChatOptions) -> Request:
        """Make the request for the assistant's answer to messages."""
        ids = self.checked_ids("messages", self.chat_ids(messages, options))
        stop_ids = self._stop_ids(params, self._chat_format(options.template).stop_ids)
        echo = self.tokenizer.decode(ids) if params.echo else ""
        grammar = self.grammar(params, continues=False)
        return Request(ids, params, self._seed(params), stop_ids, echo, continues=False, grammar=grammar)

    def grammar(self, params: SamplingParams, *, continues: bool = True) -> Grammar | None:
        """Return what a text must be. None: anything.

        Args:
            params: checked parameters.
            continues: as in Request. A text that does not continue another loses the space that a tokenizer puts before
                it, so that its tokens must begin with one.

        Raises:
            ConstraintError: the constraint cannot be used.
            Pyllama2Error: llguidance is missing, or the process that checks the constraint cannot be started.
        """
        if params.constraint is None:
            return None
        tokenizer = self.tokenizer
        assert self._compiler is not None
        return self._compiler.compile(params.constraint, after_space=tokenizer.prepends_space and not continues)

    def prompt_ids(self, prompt: Prompt, name: str = "prompt") -> list[int]:
        """Return the checked token ids of a prompt, at least one. A text is tokenized, after BOS if the model has it.

        Args:
            prompt: a string or token ids.
            name: the argument's name, for errors.
        """
        if isinstance(prompt, (bytes, bytearray, memoryview)):
            arguments.refuse(name, "a string or a list of token ids", prompt)
        if not isinstance(prompt, str):
            ids = self.checked_ids(name, prompt)
            if not ids:
                raise ValueError("a prompt of token ids must not be empty")
            return ids
        tokenizer = self.tokenizer
        bos_id = tokenizer.bos_id
        bos_text = tokenizer.piece(bos_id).strip() if bos_id is not None and tokenizer.add_bos else ""
        if bos_text and prompt.startswith(bos_text):
            warnings.warn(
                f"the prompt starts with {shown_value(bos_text)}, which is taken as text; "
                "BOS is put before a prompt anyway",
                stacklevel=4,
            )
        ids = tokenizer.with_bos(tokenizer.encode(prompt))
        if not ids:
            if bos_id is None:
                raise ValueError("the prompt is empty, and this model has no BOS token to start from")
            ids = [bos_id]
        return self.checked_ids(name, ids)

    def has_chat_format(self) -> bool:
        """Whether chats need no name of a format: the model has a template, or the vocabulary of Llama-2."""
        with self._lock:
            return self._tokenizer is not None and not isinstance(self._chat_format(None), NoChat)

    def chat_ids(self, messages: Sequence[Message], options: ChatOptions) -> list[int]:
        """Return the token ids of a conversation up to the beginning of the assistant's answer, or of its rest."""
        arguments.boolean("allow_markers", options.allow_markers)
        with self._lock:
            chat_format = self._chat_format(options.template)
            check_chat_length(messages, self._n_ctx)
            asked, answer = split_answer(
                messages, arguments.boolean("continue_final_message", options.continue_final_message)
            )
            try:
                return chat_format.encode(
                    asked, allow_markers=options.allow_markers, answer=answer, variables=options.template_kwargs
                )
            finally:
                if self._closed:  # by a signal's handler meanwhile
                    chat_format.close()

    def checked_ids(self, name: str, tokens: Sequence[int]) -> list[int]:
        """Return tokens as ints. They must be in the vocabulary and fit in the context. name is for errors."""
        ids = checked_ids(name, tokens, self._vocab_size)
        check_length(ids, self._n_ctx)
        return ids

    def close(self) -> None:
        """End the processes that render chat templates."""
        with self._lock:
            self._closed = True
            for chat_format in self._chat_formats.values():
                chat_format.close()
            self._chat_formats.clear()

    def _chat_format(self, name: str | None) -> ChatFormat:
        tokenizer = self.tokenizer
        if name is not None:
            arguments.string("template", name)
        if name not in self._chat_formats:
            self._chat_formats[name] = make_chat_format(tokenizer, self._chat_template, name)
        return self._chat_formats[name]

    def _stop_ids(self, params: SamplingParams, chat_ids: Sequence[int] = ()) -> frozenset[int]:
        own = () if params.ignore_eos else (*self.tokenizer.eos_ids, *chat_ids)
        return frozenset((*own, *params.stop_token_ids))

    def _seed(self, params: SamplingParams) -> int:
        return self._random.getrandbits(64) if params.seed is None else params.seed
