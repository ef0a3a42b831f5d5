"""Runs one case and says how it ended: success, our own clear error, or a fault."""

import faulthandler
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol

import drmm_hf

PACKAGE = str(Path(drmm_hf.__file__).parent)
# Exactly these: a JSONDecodeError or a UnicodeDecodeError is a ValueError, too, but one of another library.
OWN_TYPES = (ValueError, FileNotFoundError, OSError)
SECONDS = 20
"""Of processor time; a case that takes longer hangs. Of a clock it may take ten times as long."""


class Target(Protocol):
    """One kind of input.

    `draw` gives a value that JSON can hold and from which `run` repeats the case, in a folder of its own; `names` are
    words of which the message of an error must hold one. A target may have `interfaces`, folders of other packages
    whose ValueError is as good as ours because the user meets them as the interface.
    """

    name: str

    def draw(self, random: Any) -> Any: ...

    def run(self, value: Any, folder: Path) -> None: ...

    def names(self, value: Any) -> Sequence[str]: ...


class Refusal(Exception):
    """What a command printed before it ended with status 2: its form has been checked."""


class Verdict(NamedTuple):
    """`kind` is "success", "refused" or "fault"; `text` the error, with the place of a fault."""

    kind: str
    text: str


class Hang(BaseException):
    """A case took too long. No Exception, so that nothing on the way takes it for its own."""


def judge(target: Target, value: Any, folder: Path) -> Verdict:
    """Run a case. A hang inside of C code ends the process with a traceback."""
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
    before = signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        target.run(value, folder)
    except (Exception, SystemExit, Hang) as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        reason = _unclear(error, target.names(value), getattr(target, "interfaces", ()))
        if reason is None:
            return Verdict("refused", str(error))
        return Verdict("fault", f"{reason}: {type(error).__name__}: {str(error)[:300]} {_place(error)}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        faulthandler.cancel_dump_traceback_later()
    return Verdict("success", "")


def _unclear(error: BaseException, names: Sequence[str], also: Sequence[str]) -> str | None:
    """Why an error is not one of our own clear ones, or None."""
    text = str(error)
    if isinstance(error, Hang):
        return "hang"
    if not isinstance(error, Refusal) and not _is_field_error(error):
        if type(error) not in OWN_TYPES and not type(error).__module__.startswith("drmm_hf"):
            return "foreign type"
        if not _last_frame(error.__traceback__).startswith((PACKAGE, *also)):
            return "raised elsewhere"
    if len(text) > 3000 and not _is_field_error(error):
        return "a message of pages"
    if names and not any(name in text for name in names):
        return f"names none of {list(names)[:5]}"
    return None


def _is_field_error(error: BaseException) -> bool:
    """A configuration's own complaint about the type of a field, the same for all models of transformers."""
    text = str(error)
    return type(error).__name__.startswith("StrictDataclass") and ("field '" in text or "DrmmConfig." in text)


def _last_frame(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return frames[-1].filename if frames else ""


def _place(error: BaseException) -> str:
    """The last frame in the package and the last frame of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    shown = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:])]
    return f"[{' -> '.join(shown)}]"


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise Hang(f"no end after {SECONDS} s of processor time")
