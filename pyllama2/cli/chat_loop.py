"""A conversation, and what is done with each line of input: ChatLoop, and the table of its commands."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from ..chat_formats.base import n_system
from ..errors import CheckpointError, ContextLengthError
from ..generation.completion import Completion
from ..llama import Llama
from ..sampling.params import SEED_LIMIT, SamplingParams
from ..shown import one_line, shown
from ..tokenizer.base import utf8
from .chat_output import Answer
from .common import timings_line
from .conversation import Messages, read_messages, without_oldest_turns, write_messages
from .sampling_flags import with_escapes
from .saved_chats import SavedChat

COMMANDS = """\
  /regenerate    answer the last message anew
  /undo          forget the last message and its answer
  /edit TEXT     ask TEXT instead of the last message; without TEXT, edit it
  /reset         forget all but the system prompt; also /clear
  /system TEXT   replace the system prompt; without TEXT, do without one
  /set NAME X    change a sampling parameter, as in /set temperature 0.8
  /save PATH     write the messages to a file, as JSON
  /load PATH     go on with the messages of a file
  /stats         tokens, speeds, and how much of the context is used
  /help          this list
  /exit          end, as the end of the input does; also /quit and /bye
"""
COMMAND_NAMES = [*re.findall(r"^  (/\w+)", COMMANDS, re.MULTILINE), "/clear", "/quit", "/bye"]
FAREWELLS = frozenset(("exit", "quit", "bye", "exit()", "quit()", ":q", ":quit"))

_ENDS = ("exit", "quit", "bye")
_ALONE = ("regenerate", "undo", "reset", "clear", "stats", "help", *_ENDS)
_FOR_PYTHON = ("logits_processors", "logits_processor_factories", "echo", "logprobs")
_SETTABLE = [one.name for one in fields(SamplingParams) if one.name not in _FOR_PYTHON]


@dataclass
class ChatLoop:
    """A conversation with a model.

    Attributes:
        llm: the model.
        params: how answers are sampled.
        new_answer: makes what shows an answer.
        template: the chat format; None: the model's own.
        drop_oldest: whether to forget the oldest turns when the context is full.
        can_edit: whether somebody types, and can edit a message.
        verbose: whether to print the speed of each answer.
        system: the system prompt with which reset() starts again; None: there is none.
        saved: what keeps the conversation; None: nothing does.
        messages: the messages so far.
        refused: whether any line was answered with an error.
        draft: what the next message begins with, for /edit.
        last: the last answer.
        n_generated: tokens of all answers.
        n_anew: answers that were generated anew.
    """

    llm: Llama
    params: SamplingParams
    new_answer: Callable[[], Answer]
    template: str | None = None
    drop_oldest: bool = False
    can_edit: bool = True
    verbose: bool = False
    system: str | None = None
    saved: SavedChat | None = None
    messages: Messages = field(default_factory=list)
    refused: bool = False
    draft: str = ""
    last: Completion | None = None
    n_generated: int = 0
    n_anew: int = 0

    def handle_line(self, line: str) -> bool:
        """Run a command, or answer a message. False if the chat is to end."""
        command = re.fullmatch(r"/([A-Za-z]+)(?:\s+(.*))?", line, re.DOTALL)
        if command is None:
            self.try_to_ask(line[1:] if line.startswith("//") else line)
            return True
        name, argument = command[1], command[2]
        if name in _ENDS and argument is None:
            return False
        try:
            self._obey(name, argument)
        except OSError as error:
            if name != "load":  # an answer that cannot be printed
                raise
            self._refuse(f"{shown(argument)}: {error.strerror}")
        except (CheckpointError, ValueError, TypeError) as error:
            self._refuse(str(error))
        return True

    def try_to_ask(self, text: str, history: Messages | None = None) -> None:
        """Call ask(), and print the reason if the message is refused."""
        try:
            self.ask(text, history)
        except ContextLengthError as error:
            hint = "" if self.drop_oldest else "; --drop-oldest forgets the oldest turns"
            self._refuse(f"{error} (/clear starts again{hint})")
        except ValueError as error:
            self._refuse(str(error))

    def ask(self, text: str, history: Messages | None = None) -> bool:
        """Print the answer to a message as it is generated, and keep both.

        The part of an answer that came before Ctrl-C is kept. A message without any answer is not.

        Args:
            text: the user's message.
            history: the messages before it. None: all messages so far.

        Returns:
            False if Ctrl-C ended the answer.

        Raises:
            ContextLengthError, ValueError: the message is refused. The conversation is unchanged.
        """
        stream = answer = None
        interrupted = False
        asked: Messages = [*(self.messages if history is None else history), {"role": "user", "content": text}]
        try:
            asked = self._fitting(asked)
            stream = self.llm.stream_chat(asked, self._next_params(), template=self.template)
            answer = self.new_answer()
            for chunk in stream:
                answer.write(chunk.text)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if stream is not None:
                stream.close()
            if stream is not None and answer is not None:
                answer.close(stream.completion)
        if stream is not None:
            self._keep(asked, stream.completion)
        if interrupted:
            print("(stopped)", file=sys.stderr)
        return not interrupted

    def reset(self) -> None:
        """Forget all messages but the system prompt."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.last = None
        if self.saved is not None:
            self.saved.begin_another()

    def go_on_with(self, messages: Messages) -> None:
        """Replace the conversation. What is kept of the one before stays as it is."""
        self.messages = messages
        self.system = messages[0]["content"] if n_system(messages) else None
        self.last = None
        if self.saved is not None:
            self.saved.begin_another()

    def set_system(self, text: str | None) -> None:
        """Replace the system prompt. None: do without one. Raises ValueError for text that is not valid Unicode."""
        utf8(text or "")
        self.system = text
        rest = self.messages[n_system(self.messages) :]
        self.messages = ([] if text is None else [{"role": "system", "content": text}]) + rest

    def _next_params(self) -> SamplingParams:
        """With a seed, an answer that is generated anew has the next seed. Otherwise it would be the same."""
        if self.params.seed is None or not self.n_anew:
            return self.params
        return replace(self.params, seed=(self.params.seed + self.n_anew) % SEED_LIMIT)

    def _keep(self, asked: Messages, answer: Completion) -> None:
        self.n_generated += answer.usage.completion_tokens
        if answer.finish_reason == "cancelled" and not answer.text.strip():
            return
        self.last = answer
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            print(f"(the answer was cut after {answer.usage.completion_tokens} tokens)", file=sys.stderr)
        if self.verbose:
            print(timings_line(self.llm, answer, verbose=True), file=sys.stderr)
        self._save()

    def _save(self) -> None:
        if self.saved is None:
            return
        try:
            self.saved.save(self.messages)
        except (OSError, CheckpointError) as error:
            self.saved = None
            print(one_line(f"(the conversation cannot be saved: {error})"), file=sys.stderr)

    def _fitting(self, asked: Messages) -> Messages:
        """With drop_oldest, drop the oldest turns of a conversation that does not fit into the context."""
        if not self.drop_oldest:
            return asked
        quarter = self.llm.n_ctx // 4
        room = quarter if self.params.max_tokens is None else min(quarter, self.params.max_tokens)

        def count(messages: Messages) -> int:
            try:
                return len(self.llm.chat_tokens(messages, template=self.template))
            except ContextLengthError:  # far more characters than the context holds
                return sys.maxsize

        kept = without_oldest_turns(asked, count, self.llm.n_ctx - room)
        if len(kept) < len(asked):
            n_turns = (len(asked) - len(kept)) // 2
            print(f"(forgot the oldest {f'{n_turns} turns' if n_turns > 1 else 'turn'})", file=sys.stderr)
        return kept

    def _obey(self, name: str, argument: str | None) -> None:
        """Run a command.

        Raises:
            ValueError, TypeError: it is unknown or incomplete, or the file to load holds no conversation.
            OSError: the file to load cannot be read, or an answer cannot be printed.
            CheckpointError: the file to save cannot be written.
        """
        if name in _ALONE and argument is not None:
            raise ValueError(f"/{name} takes nothing after it (// begins a message with /)")
        if name in ("save", "load") and argument is None:
            raise ValueError(f"/{name} needs the path of a file")
        path = os.path.expanduser(argument or "")
        if name in ("reset", "clear"):
            self.reset()
        elif name == "system":
            self.set_system(argument)
        elif name == "set":
            self._set(argument)
        elif name in ("regenerate", "edit"):
            self._ask_anew(name, argument)
        elif name == "undo":
            self._last_question()
            self.messages = self.messages[:-2]
            self._save()
        elif name == "save":
            write_messages(path, self.messages)
        elif name == "load":
            self.go_on_with(read_messages(path))
        elif name == "stats":
            self._print_stats()
        elif name == "help":
            print(COMMANDS, end="", file=sys.stderr)
        else:
            raise ValueError(f"there is no command /{shown(name)}; /help lists them (// begins a message with /)")

    def _last_question(self) -> str:
        if len(self.messages) - n_system(self.messages) < 2:
            raise ValueError("there is no message yet")
        return self.messages[-2]["content"]

    def _ask_anew(self, name: str, text: str | None) -> None:
        question = self._last_question()
        if name == "edit" and text is None:
            if not self.can_edit:
                raise ValueError("/edit needs a text, since nobody types here")
            self.messages = self.messages[:-2]
            self.draft = question
            return
        if name == "regenerate":
            self.n_anew += 1
        self.try_to_ask(question if text is None else text, self.messages[:-2])

    def _set(self, argument: str | None) -> None:
        """Change a sampling parameter, or print one or all of them."""
        words = re.sub(r"^parameter\s+(?=\S)", "", (argument or "").strip())  # as ollama has it
        name, _, value = words.partition(" ")
        name = name.replace("-", "_")
        if not name or (name in _SETTABLE and not value.strip()):
            for one in [name] if name else _SETTABLE:
                print(f"  {one:<20} {getattr(self.params, one)!r}", file=sys.stderr)
        elif name == "system":
            self.set_system(value.strip() or None)
        else:
            self.params = SamplingParams.of(self.params, **{name: _value(name, value.strip())})

    def _print_stats(self) -> None:
        n_turns = (len(self.messages) - n_system(self.messages)) // 2
        print(f"{n_turns} turns; {self.n_generated} tokens generated in all", file=sys.stderr)
        if self.last is not None:
            usage = self.last.usage
            used = usage.prompt_tokens + usage.completion_tokens
            print(f"context: {used} of {self.llm.n_ctx} tokens used", file=sys.stderr)
            print(f"last answer: {timings_line(self.llm, self.last, verbose=True)}", file=sys.stderr)

    def _refuse(self, message: str) -> None:
        self.refused = True
        print(one_line(message), file=sys.stderr)


_WORDS = {"none": "null", "off": "null", "on": "true", "true": "true", "false": "false"}  # in any spelling


def _value(name: str, text: str) -> object:
    """What text stands for: a number, none, true or false, a list as JSON, else a string."""
    if not text:
        return None
    if name == "stop" and text[0] not in '"[':
        return with_escapes(text)
    try:
        value = json.loads(_WORDS.get(text.lower(), text))
    except ValueError:
        return text
    if name == "logit_bias" and isinstance(value, dict):  # JSON has no ids as keys
        return {int(key) if key.isdecimal() else key: one for key, one in value.items()}
    return value
