"""The messages of a chat to token ids. Start at make_chat_format(). base.py has the interface of all formats."""

from .formats import CHAT_FORMATS, make_chat_format

__all__ = ["CHAT_FORMATS", "make_chat_format"]
