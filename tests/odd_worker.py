"""A worker that misbehaves as the first line of its input says, and is the stub worker otherwise.

``{"odd": "oom", "cgroup": …}`` eats memory in a cgroup until the kernel kills it, ``garbage`` says what is no
event and exits, ``silent`` exits with 0 and no outcome.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    (source,) = (Path(sys.argv[1]) / "models" / "runs" / json.loads(line)["job_id"] / "data").glob("input.*")
    script = json.loads(source.read_text(encoding="utf-8").splitlines()[0])
    odd = script.get("stub", {}).pop("odd", None)
    if odd == "garbage":
        os.write(int(sys.argv[2]), b"\x00\xffwhat is this\n")
        sys.exit(3)
    if odd == "silent":
        sys.exit(0)
    if odd is not None:
        (Path(odd) / "cgroup.procs").write_text(str(os.getpid()))
        eaten = []
        while True:
            eaten.append(b"x" * 2**20)
    reading, writing = os.pipe()
    os.write(writing, line)
    os.dup2(reading, 0)
    os.execv(sys.executable, [sys.executable, str(Path(__file__).with_name("stub_worker.py")), *sys.argv[1:]])


if __name__ == "__main__":
    main()
