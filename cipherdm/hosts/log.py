"""What an operator sees: a line of JSON for each event, with who, what and how long, and never a share, value or input."""

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO


class EventLog:
    """Writes events, and remembers the last error for `status`.

    Args:
        rank: of the party, which is in each line.
        stream: where the lines go; standard error by default.
    """

    def __init__(self, rank: int, stream: TextIO | None = None):
        self._rank, self._stream = rank, stream or sys.stderr
        self._lock = threading.Lock()
        self.last_error, self.last_error_time = "", ""

    def __call__(self, event: str, *, level: str = "info", **about: str | int | float) -> None:
        """Write one line. Run names are cut to eight characters, which find a run in all three logs."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "level": level, "party": self._rank, "event": event}
        line |= {name: value[:8] if name == "run" else value for name, value in about.items()}
        with self._lock:
            if level == "error":
                self.last_error, self.last_error_time = f"{event}: {about.get('reason', '')}", now
            print(json.dumps(line), file=self._stream, flush=True)
