"""A chat model for LangChain, on the Python API. Its text comes as it is generated; several inputs are batched.

pip install langchain-core
python examples/langchain_chat.py [MODEL]
"""

import sys
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate

from pyllama2 import Llama

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class ChatPyllama2(BaseChatModel):
    """Answers with a Llama. Options such as temperature are given to invoke(), or by bind()."""

    llama: Any  # pyllama2.Llama
    template: str | None = None  # a chat format, for models without a template

    @property
    def _llm_type(self) -> str:
        return "pyllama2"

    def _stream(self, messages, stop=None, run_manager=None, **sampling):
        dialog = [{"role": ROLES[message.type], "content": str(message.content)} for message in messages]
        for chunk in self.llama.stream_chat(dialog, template=self.template, stop=stop or [], **sampling):
            yield ChatGenerationChunk(message=AIMessageChunk(content=chunk.text))
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text)

    def _generate(self, messages, stop=None, run_manager=None, **sampling):
        text = "".join(str(chunk.message.content) for chunk in self._stream(messages, stop, run_manager, **sampling))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text))])


with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llama:
    # The bundled model only tells stories, so any format will do.
    model = ChatPyllama2(llama=llama, template=None if llama.has_chat_format else "zephyr")
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    chain |= model.bind(max_tokens=20, seed=1)
    for chunk in chain.stream({"question": "Why is the sky blue?"}):
        print(chunk.content, end="", flush=True)
    print()
    answers = model.batch([[HumanMessage("One day")], [HumanMessage("At night")]], max_tokens=10, seed=1)
    print([answer.content for answer in answers])
