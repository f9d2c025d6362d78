"""A real TensorBoard server for the tests that ask its HTTP API."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def tensorboard(folder: Path, *, runs: set[str]) -> Iterator[Callable[..., Any]]:
    """Serve `folder` until the block ends; yields a function that asks the API, once all `runs` are loaded.

    Its attribute `address` is that of the page.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address: list[str] = []
    lines: list[str] = []

    def listen() -> None:
        for line in process.stdout:
            lines.append(line)
            address.extend(re.findall(r"at (http://\S+?)/? \(", line))

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()

    def ask(path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{address[0]}/data/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.load(answer)

    try:
        deadline = time.monotonic() + 90
        # The data come some time after the page.
        while not address or not runs <= set(ask("plugin/scalars/tags")):
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            time.sleep(0.2)
        ask.address = address[0]
        yield ask
    finally:
        process.terminate()
        process.wait(30)
        reader.join(30)
        process.stdout.close()
