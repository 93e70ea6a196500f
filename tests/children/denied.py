"""Has the kernel refuse a system call, as a container's seccomp profile may: denied.py CALL[=VALUE[@INDEX]] COMMAND...

CALL is a name of NUMBERS. VALUE: only if its first argument is this number, or that at INDEX, counted from 0.
SIDECAR_TEST_ERRNO: EPERM or another.
"""

import ctypes
import errno
import os
import struct
import sys

NUMBERS = {  # on x86_64, on aarch64; the newer ones are the same everywhere
    "prctl": (157, 167),
    "rt_sigprocmask": (14, 135),
    "rt_sigaction": (13, 134),
    "poll": (7, 73),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "openat2": (437, 437),
    "memfd_create": (319, 279),
}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
NUMBER_AT, ARGUMENTS_AT = 0, 16

libc = ctypes.CDLL(None, use_errno=True)


def refuse(number: int, value: int | None, index: int, error: int) -> None:
    """Of the argument, the lower half alone is compared."""
    program = [(LOAD, 0, 0, NUMBER_AT), (EQUAL, 0, 1 if value is None else 3, number)]
    if value is not None:
        program += [(LOAD, 0, 0, ARGUMENTS_AT + 8 * index), (EQUAL, 0, 1, value)]
    program += [(RETURN, 0, 0, ERROR | error), (RETURN, 0, 0, ALLOW)]
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, FILTER, header, 0, 0) != 0:
        sys.exit(f"cannot install a filter: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    error = getattr(errno, os.environ.get("SIDECAR_TEST_ERRNO", "EPERM"))
    call, _, condition = sys.argv[1].partition("=")
    value, _, index = condition.partition("@")
    number = NUMBERS[call][os.uname().machine == "aarch64"]
    refuse(number, int(value) if value else None, int(index or 0), error)
    os.execvp(sys.argv[2], sys.argv[2:])
