"""What people read where they made an error: one to three lines, without a traceback."""

import errno
import os
import sys
from types import TracebackType

TRACEBACK, _LONGEST = "LLMREC_TRACEBACK", 1000  # characters of a line
# How a full disk is called: by the system, by safetensors, and by torch.save.
_FULL = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "unexpected pos")


def print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """For `sys.excepthook`: `message_of`, after the traceback where LLMREC_TRACEBACK asks for that; without a message
    the traceback alone."""
    message = message_of(error)
    if message is None or os.environ.get(TRACEBACK, "0") not in ("", "0"):
        sys.__excepthook__(kind, error, traceback)
    if message is not None:
        sys.stderr.write(f"{message}\n")


def message_of(error: BaseException) -> str | None:
    """What a user reads of an error, at most three lines; `None` where it is the program's fault, not the user's."""
    said = [str(one) for one in _chain(error)]
    codes = {one.errno for one in _chain(error) if isinstance(one, OSError)}
    hint = "" if _is_ours(error) else f"\n({TRACEBACK}=1 shows where it comes from)"
    if isinstance(error, KeyboardInterrupt):
        return "Stopped. The same command goes on where it can."
    if codes & {errno.ENOSPC, errno.EDQUOT} or any(word in text for word in _FULL for text in said):
        return f"Error: the disk is full: make room, and the same command goes on\n{_lines(said[0], 1)}"
    if type(error).__name__ == "OutOfMemoryError":
        advice = "lower the batch size or max_length, or set gradient_checkpointing: true"
        return f"Error: the GPU's memory is full: {advice}\n{_lines(said[0], 1)}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"Error: {error.filename}: {error.strerror.lower()}{hint}"
    if isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        return f"Error: {_lines(said[0], 2)}{hint}"
    return None


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised an error: then its message was written for people."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals["__name__"].split(".")[0] in ("llmrec", "__main__")


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _lines(text: str, most: int) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "\n".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …" for line in lines[:most])
