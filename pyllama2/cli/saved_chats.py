"""What a chat keeps between sessions: its conversations, and the lines that were typed.

They are in $XDG_STATE_HOME/pyllama2, else ~/.local/state/pyllama2, in folders that only their owner can read. Only the
newest conversations stay.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .conversation import Messages, write_messages

_KEPT = 50  # conversations


def state_folder() -> Path:
    """Return the folder of what is kept. It may not exist."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "pyllama2"


def newest_chat() -> Path | None:
    """Return the file of the newest conversation. None: there is none."""
    return max((state_folder() / "chats").glob("*.json"), default=None)


class SavedChat:
    """The file of one conversation, which is written anew after each answer.

    Args:
        path: the file of an earlier conversation, to go on with it. None: a new one, made at the first save().
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def save(self, messages: Messages) -> None:
        """Write the messages.

        Raises:
            CheckpointError: the file cannot be written.
            OSError: its folder cannot be made.
        """
        if self._path is None:
            folder = private_folder("chats")
            self._path = folder / datetime.now().strftime(f"%Y%m%d-%H%M%S.%f-{os.getpid()}.json")
            for old in sorted(folder.glob("*.json"))[: 1 - _KEPT]:
                with suppress(OSError):
                    old.unlink()
        write_messages(str(self._path), messages)

    def begin_another(self) -> None:
        """Leave the file as it is: the next save() makes another."""
        self._path = None


def private_folder(name: str = "") -> Path:
    """Make a folder of the state folder, for its owner alone. Raises OSError if that is not possible."""
    folder = state_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    for one in {state_folder(), folder}:
        one.chmod(0o700)
    return folder
