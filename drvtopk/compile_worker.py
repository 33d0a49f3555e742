"""A process that compiles one program with NVRTC: the request on stdin, the answer on stdout. `workers.py` starts it.

It runs by its path in an isolated interpreter, and imports neither this package nor the bindings: it then starts in a
few hundredths of a second, wherever the package came from, and whatever the host has put into the environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from typing import Any

MAGIC = b"drvtopk1"
ANSWER = struct.Struct("<8siQQ")  # MAGIC, NVRTC's code, bytes of the log, bytes of the cubin; then both
_PR_SET_PDEATHSIG = 1


def _end_in_time(parent: int, seconds: int) -> None:
    """Has the system end this process with its parent, and after so many seconds."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a host's ignored and blocked signals come along
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.alarm(seconds)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _strings(values: list[bytes]) -> Any:
    return (ctypes.c_char_p * len(values))(*values)


def _compile(request: dict[str, Any]) -> tuple[int, bytes, bytes]:
    """(NVRTC's code, log, cubin). Raises OSError if the library is not the one that the parent has."""
    nvrtc = ctypes.CDLL(request["library"])
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if [major.value, minor.value] != request["version"]:
        raise OSError(f"{request['library']} is NVRTC {major.value}.{minor.value}")
    program = ctypes.c_void_p()

    def text(what: str) -> bytes:
        size = ctypes.c_size_t()
        if getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)):
            return b""
        held = ctypes.create_string_buffer(size.value)
        return held.raw if not getattr(nvrtc, f"nvrtcGet{what}")(program, held) else b""

    names, headers = ([part.encode("latin-1") for part in request[of]] for of in ("names", "headers"))
    source, name = (request[of].encode("latin-1") for of in ("source", "name"))
    options = [option.encode() for option in request["options"]]
    code = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source, name, len(names), _strings(headers), _strings(names)
    ) or nvrtc.nvrtcCompileProgram(program, len(options), _strings(options))
    return code, text("ProgramLog").rstrip(b"\0"), b"" if code else text("CUBIN")


def main() -> None:
    _end_in_time(*map(int, sys.argv[1:]))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever a library prints is no part of the answer
        # By its length, not to the end: a child that the host forks meanwhile keeps the pipe open.
        size = int.from_bytes(sys.stdin.buffer.read(8), "little")
        code, log, cubin = _compile(json.loads(sys.stdin.buffer.read(size)))
        out.write(ANSWER.pack(MAGIC, code, len(log), len(cubin)) + log + cubin)


if __name__ == "__main__":
    main()
