"""ChatEngine: an Engine that answers the messages of chats."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..chat_formats.base import Message
from ..sampling.keywords import Sampling
from ..sampling.params import SamplingParams
from .chunk import Chunk
from .completion import Completion
from .engine import Engine
from .other_names import AnsweringMethods
from .requests import ChatOptions
from .stream import Stream, pulled_in_threads

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ChatEngine(AnsweringMethods, Engine):
    """What Llama does with chats."""

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: str | None = None,
        allow_markers: bool = False,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """Answer the messages of a chat as the assistant.

        Args:
            messages: [{"role": ..., "content": ...}], the last of them the user's.
            params: None: the defaults.
            template: a chat format instead of the model's own: llama2, chatml, llama3, zephyr or mistral.
            allow_markers: accept messages that contain the format's markers.
            continue_final_message: the last message is the beginning of the assistant's answer, which goes on from
                there. It is not in the text that is returned.
            template_kwargs: further variables of the chat template, as JSON values.
            sampling: fields of SamplingParams, which replace those of params.

        Raises:
            ValueError: the format cannot express the messages, a message contains a marker, the last one is not the
                user's, or an argument is wrong.
            Pyllama2Error, TypeError: as in generate().
        """
        options = ChatOptions(template, allow_markers, continue_final_message, template_kwargs)
        return self._complete([self._requests.of_chat(messages, self._checked(params, sampling), options)])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: str | None = None,
        allow_markers: bool = False,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Answer chunk by chunk. Arguments and errors are those of chat(), the iterator is that of stream()."""
        options = ChatOptions(template, allow_markers, continue_final_message, template_kwargs)
        return self._stream(self._requests.of_chat(messages, self._checked(params, sampling), options))

    def astream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: str | None = None,
        allow_markers: bool = False,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerator[Chunk, None]:
        """Run stream_chat() for asyncio. Arguments and errors are those of chat(); chunks come as from astream()."""
        options = ChatOptions(template, allow_markers, continue_final_message, template_kwargs)
        return pulled_in_threads(
            self._stream(self._requests.of_chat(messages, self._checked(params, sampling), options))
        )

    def chat_tokens(
        self,
        messages: Sequence[Message],
        *,
        template: str | None = None,
        allow_markers: bool = False,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids that chat() feeds to the model. Arguments and errors are those of chat()."""
        self._require_backend()
        options = ChatOptions(template, allow_markers, continue_final_message, template_kwargs)
        return self._requests.chat_ids(messages, options)
