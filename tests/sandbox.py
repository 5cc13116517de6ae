"""A process in which system calls fail as in a sandbox, on an old kernel or an odd disk."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

import pytest

_NUMBERS: Final = {  # of x86-64
    "fadvise64": 221,
    "fallocate": 285,
    "fchmod": 91,
    "fgetxattr": 193,
    "flock": 73,
    "fsetxattr": 190,
    "kill": 62,
    "link": 86,
    "linkat": 265,
    "madvise": 28,
    "renameat2": 316,
    "statfs": 137,
    "sync_file_range": 277,
}
_NO_NEW_PRIVS: Final = 38  # PR_SET_NO_NEW_PRIVS, linux/prctl.h: so that any user may filter
_SECCOMP: Final = 22, 2  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid(**numbers: int) -> None:
    """Let system calls fail from now on in this process, which cannot be taken back.

    Args:
        numbers: The errno that each says.
    """
    steps = [(_LOAD, 0, 0, 0)]  # the number of the call
    for call, number in numbers.items():
        steps += [(_EQUAL, 0, 1, _NUMBERS[call]), (_RETURN, 0, 0, _ERROR | number)]
    text = b"".join(struct.pack("HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _ALLOW)])
    program = _Program(len(text) // 8, text)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVS, 1, 0, 0, 0), (*_SECCOMP, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "no such filter here")


needs_filter = pytest.mark.skipif(
    platform.machine() != "x86_64" or os.uname().sysname != "Linux",
    reason="needs Linux on x86-64, whose system calls are filtered",
)
