"""What all threads of this process are doing, as text."""

from __future__ import annotations

import sys
import threading
import traceback


def thread_stacks() -> str:
    """Stacks of all threads but the calling one, the main thread's first."""
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    main = threading.main_thread().ident
    parts = [
        f"thread {threads.get(number, number)}:\n{''.join(traceback.format_stack(frames[number]))}"
        for number in sorted(frames, key=lambda number: (number != main, number))
    ]
    return "\n".join(parts)
