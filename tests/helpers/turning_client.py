"""A client that is a process of its own: `python turning_client.py TOML NUMBER`.

It prints "ready", then makes a request for each line on its input, with a seed for the numbers, and prints a line for all news
of it and one for its end: "right", "wrong", or the error's name and words. SIGUSR1 lets `progress` raise an exception.
"""

import random
import signal
import sys

from random_faults import Call, OnPurpose, is_right, some_input

from cipherdm.hosts import RemoteCluster


def main() -> None:
    asked = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
    signal.signal(signal.SIGINT, lambda *_: interrupt())
    call = None

    def interrupt() -> None:
        if call is not None and not call.outcome:
            raise KeyboardInterrupt

    def progress(*_) -> None:
        print("news", flush=True)
        if asked:
            raise OnPurpose

    with RemoteCluster(sys.argv[1]) as cluster:
        print("ready", flush=True)
        for line in sys.stdin:
            asked.clear()
            x = some_input(random.Random(line))
            call = Call(
                "client", lambda _, x=x: is_right(cluster.request("turning", {"x": x}, progress).outputs["x"], x)
            )
            try:
                call()
            except KeyboardInterrupt:
                call.outcome = "error"
            print(call.outcome, call.message, flush=True)


main()
