"""A script: run command lines (JSON lists of words) where nothing may be taken for granted.

No connection to anywhere but this machine's own processes, every warning from Limpet's own code an error, and worker
processes started anew (spawn), as on Windows and macOS. Prints the exit codes as JSON in the last line.
"""

import json
import multiprocessing
import re
import socket
import sys
import warnings


class Refused(BaseException):
    """Something reached for the network; no handler for ordinary errors hides it."""


def no_network(event, arguments):
    """Audit hook."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        raise Refused(f"{event} {arguments}")
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        raise Refused(f"{event} {arguments[1]}")


def main():
    sys.addaudithook(no_network)
    multiprocessing.set_start_method("spawn")
    from limpet import cli

    show = warnings.showwarning

    def strict(message, category, filename, lineno, file=None, line=None):
        if re.search(r"/(adapters|datamodules|recipes|limpet)/", filename.replace("\\", "/")):
            raise AssertionError(f"{filename}:{lineno}: {category.__name__}: {message}")
        show(message, category, filename, lineno, file, line)

    warnings.showwarning = strict
    warnings.simplefilter("always")
    codes = [cli.main(words) for words in json.loads(sys.argv[1])]
    print("\n" + json.dumps(codes))


if __name__ == "__main__":
    main()
