"""What a control takes out of the module: for each protection, the naive code that it replaces.

`Bundle(..., without="null-device")` runs the source of that name before the module's `main`; in it, `module` is the
module. An attack that fails against the module must succeed against it without the protection, or it proves nothing.
"""

from __future__ import annotations

NAIVE: dict[str, str] = {
    "undumpable": "module._Launcher.guard = lambda self: None",
    "empty-environment-block": "module._Kernel.empty_environment_block = lambda self: None",
    "empty-capability-sets": """
module._Kernel.drop_bounding_set = module._Kernel.drop_capabilities = lambda self, kept: None
""",
    "no-new-privs": """
prctl = module._Kernel.prctl
module._Kernel.prctl = lambda self, option, *values: option == 38 or prctl(self, option, *values)
module._Kernel.drop_bounding_set = lambda self, kept: None
""",
    "core-limit": """
import resource
setrlimit = resource.setrlimit
module.resource.setrlimit = lambda kind, limits: kind == resource.RLIMIT_CORE or setrlimit(kind, limits)
""",
    "own-limits": "module._raise_descriptor_limit = lambda: {}",
    "own-environment": "module._env_for_daemon = lambda name, env: dict(env)",
    "redaction": "module._Secrets.redact = lambda self, data: data",
    # As it was before 1.1: the child opens it by its path. What is on stdin already is the way to get there.
    "null-device": """
import os
module._open_null_device = lambda: os.open("/", os.O_RDONLY)
dup2 = os.dup2
module.os.dup2 = lambda source, target, *more: dup2(
    os.open("/dev/null", os.O_RDONLY) if target == 0 else source, target, *more
)
""",
    "local-accounts": """
import pwd
def account_of(spec, accounts, log):
    entry = pwd.getpwnam(spec.user) if spec.user else None
    return entry and module._Account(spec.user, entry.pw_uid, entry.pw_gid, entry.pw_dir)
module._account_of = account_of
""",
    "refusal-of-uid-0": "module._account_of = lambda spec, accounts, log: accounts.get(spec.user)",
    "own-lines-of-a-check": """
module._Output.sibling = lambda self, **_: self
module._Output.close = lambda self: None
""",
    "lines-of-one-process": "module._size_of = lambda pipe: 0",
    "state-directory-descriptor": """
import os, time
def replace(self, name, contents):
    if not os.path.isdir(self.path):
        os.makedirs(self.path)
        time.sleep(0.001)  # as slow as a machine may be
        os.chmod(self.path, 0o755)
    with open(f"{self.path}/{name}.new", "wb") as file:
        file.write(contents)
    os.replace(f"{self.path}/{name}.new", f"{self.path}/{name}")
module._Directory.replace = replace
""",
    # Made when there is something to write for the second time: some daemon runs by then.
    "state-directory-first": """
import os, time
class Later:
    def __init__(self, path):
        self.path, self.opened, self.writes = path, None, 0
    def append(self, *rest):
        pass
    def replace(self, name, contents):
        self.writes += 1
        if self.writes > 1:
            for _ in range(500):  # as slow as a machine may be
                if os.path.exists(self.path):
                    break
                time.sleep(0.01)
            os.makedirs(self.path, exist_ok=True)
            with open(f"{self.path}/{name}.new", "wb") as file:
                file.write(contents)
            os.replace(f"{self.path}/{name}.new", f"{self.path}/{name}")
module._Directory = Later
""",
    "own-state-files": """
import os
def open_state(self, name, flags):
    fd = os.open(name, flags | os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=self._fd)
    os.fchmod(fd, 0o644)
    return fd
module._Directory._open = open_state
""",
    "redaction-of-beginnings": "module._Secrets.without_unfinished = lambda self, data, daemon: (data, b'')",
    "redaction-of-rests": "module._Secrets.without_rest = staticmethod(lambda chunk, rest: (chunk, b''))",
    "redaction-of-beginnings-for-owners": """
without_unfinished = module._Secrets.without_unfinished
module._Secrets.without_unfinished = lambda self, data, daemon: without_unfinished(self, data, "egress")
""",
    "no-last-lines-of-owners": """
make = module._Lines.__init__
def make_and_keep(self, *how, **more):
    make(self, *how, **more)
    self._keeps_last_lines = True
module._Lines.__init__ = make_and_keep
""",
    "redaction-of-the-table": """
add = module._Secrets.add
module._Secrets.add = lambda self, name, secret: name == b"EGRESS_TOKEN_TABLE" or add(self, name, secret)
""",
    "pidfd": """
import os
def signal_group(self, number):
    try:
        os.killpg(self.pid, number)
    except ProcessLookupError:
        return self.returncode is None
    return True
module._Process.signal_group = signal_group
""",
    "redaction-before-encoding": """
replace = module._Directory.replace
secrets = module._Secrets(module.os.environb, module._SECRETS)
module._Directory.replace = lambda self, name, contents: replace(self, name, secrets.redact(contents))
""",
    "regular-state-files": """
def read(name, directory):
    with open(f"{directory}/{name}") as file:
        return file.read()
module._read_state = read
""",
    "socket-inodes": "module._Process.old_sockets = property(lambda self: frozenset(), lambda self, sockets: None)",
    "netlink-to-the-kernel-alone": """
call = module._Kernel.call
module._Kernel.call = lambda self, name, *rest: name == "connect" or call(self, name, *rest)
""",
    # A reader that opens the path at each start, as root.
    "safe-reading": """
def read(self, path, limit):
    with open(path, "rb") as file:
        return file.read(limit)
module._Inputs._read = read
""",
    "checked-folders": """
import os
module._Inputs._open_folder = staticmethod(lambda path: os.open(path, os.O_PATH | os.O_CLOEXEC))
""",
    "checked-links": "module._foreign_link = lambda path: ''",
    "lookup-beneath": """
import os
module._Kernel.open_beneath = lambda self, folder, name: os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
""",
    "reading-as-the-owner": "module._Kernel.as_user = lambda self, uid, action, *more, **how: action(*more, **how)",
    "reading-without-waiting": """
import os
open_file = os.open
def waiting(path, flags, *mode, **where):
    return open_file(path, flags & ~os.O_NONBLOCK if str(path).startswith("self/fd/") else flags, *mode, **where)
module.os.open = waiting
""",
    "absorbing-of-errors": """
def leave(log, error):
    raise SystemExit(f"not absorbed: {error!r}")
module._log_internal_error = leave
""",
    # Not a protection: a bug, for the tests that nothing is raised out of the loop.
    "a-working-forward": "module._Supervisor.forward_signal = lambda self, *_: self.no_such_attribute",
}
