"""Files that PID 1 reads for a daemon, and passes as descriptors: what the daemon gets, and why one does not start."""

from __future__ import annotations

import errno
import os
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import sidecar_init
from sidecar_init import _DaemonSpec
from tests.support import wait_until
from tests.unit.support import NO_SECRETS, SupervisorTest, UnitTest

LIMIT = 1 << 20


class FilesTest(SupervisorTest):
    def setUp(self) -> None:
        super().setUp()
        self.patch("_BACKOFF_FIRST", 0.05)
        self.folder = self.directory()
        self.key = self.write("key", "contents")

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def web(self, script: str, **fields: Any) -> _DaemonSpec:
        return _DaemonSpec("web", ["/bin/sh", "-c", script], **fields)

    def says(self, script: str, **fields: Any) -> list[str]:
        """What a daemon says, without the prefix."""
        self.tick_until_done(self.supervise(self.web(script, **fields)))
        return [line.removeprefix("[web] ") for line in self.logged().splitlines() if line.startswith("[web] ")]


class Contents(FilesTest):
    def test_the_variable_names_a_descriptor_that_holds_the_contents(self) -> None:
        said = self.says("echo $KEY; cat $KEY; echo; cat <&3", files={"KEY": self.key})
        self.assertEqual(said, ["/proc/self/fd/3", "contents", "contents"])

    def test_each_has_the_number_of_its_place_even_if_one_before_it_is_missing(self) -> None:
        files = {"GONE": f"{self.folder}/gone", "KEY": self.key, "NONE": "/no/such/folder/file", "LAST": self.key}
        said = self.says('echo "${GONE-unset} $KEY ${NONE-unset} $LAST"; cat $KEY $LAST', files=files)
        self.assertEqual(said, ["unset /proc/self/fd/4 unset /proc/self/fd/6", "contentscontents"])

    def test_many_do_not_get_in_each_others_way(self) -> None:
        """After forty that are missing, the numbers of some are those that PID 1 has given to others."""
        files = {f"KEY{number}": f"{self.folder}/key{number}" for number in range(80)}
        for number in range(40, 80):
            self.write(f"key{number}", f"{number} ")
        expected = "".join(f"{number} " for number in range(40, 80))
        self.assertEqual(self.says("for n in $(seq 43 82); do cat /proc/self/fd/$n; done", files=files), [expected])

    def test_one_that_is_missing_is_reported_once_with_the_reason(self) -> None:
        files = {"GONE": f"{self.folder}/gone", "NONE": "/no/such/folder/file"}
        supervisor = self.supervise(self.web("exit 1", restart="always", files=files))
        self.tick_until(supervisor, lambda: self.logged().count("web started") > 2, "three starts")
        gone, none = (line for line in self.logged().splitlines() if "starts without" in line)
        self.assertIn(f"GONE: cannot find {self.folder}/gone: No such file or directory", gone)
        if os.geteuid() == 0:
            self.assertIn("NONE: cannot find /no/such/folder/file: its directory did not exist at startup", none)

    def test_a_variable_of_the_environment_is_the_path_instead_unless_it_is_empty(self) -> None:
        other = self.write("other", "of the environment")
        for value, expected in ((other, "of the environment"), ("", "contents")):
            with self.subTest(value):
                os.environ["KEY"] = value
                self.assertEqual(self.says("cat $KEY", files={"KEY": self.key})[-1:], [expected])

    def test_a_path_of_the_environment_that_is_not_absolute_is_refused_and_not_repeated(self) -> None:
        os.environ["KEY"] = "the-key-itself"
        self.assert_refused("cannot read KEY: its path must be absolute", files={"KEY": self.key})
        self.assertNotIn("the-key-itself", self.logged())

    def test_each_start_reads_it_again(self) -> None:
        supervisor = self.supervise(self.web("cat $KEY; echo; exec sleep 60", files={"KEY": self.key}))
        self.tick_until_logged(supervisor, "[web] contents")
        self.write("key", "newer")
        supervisor.restart_daemon("web")
        self.tick_until_logged(supervisor, "[web] newer")

    def test_checks_and_readiness_commands_get_them_too(self) -> None:
        look = ["/bin/sh", "-c", "cat $KEY >&2"]
        spec = self.web("exec sleep 60", files={"KEY": self.key}, check=look, ready=look)
        supervisor = self.supervise(spec)
        self.tick_until_logged(supervisor, "web ready")
        self.write("key", "checked")
        self.assertTrue(supervisor.restart_daemon("web"))
        self.assertIn("[web] checked", self.logged())

    def test_of_the_greatest_size_and_empty_it_is_whole(self) -> None:
        for size in (0, LIMIT):
            with self.subTest(size):
                self.write("key", "x" * size)
                self.assertEqual(self.says("wc -c <$KEY", files={"KEY": self.key})[-1], str(size))

    def test_a_thousand_reads_cost_no_descriptor(self) -> None:
        files = {"GONE": f"{self.folder}/gone", "KEY": self.key, "PIPE": f"{self.folder}/pipe"}
        supervisor = self.supervise(self.web("exec true", files={"KEY": self.key}))
        self.tick_until_done(supervisor)
        inputs, account = supervisor._launcher._inputs, None
        before = os.listdir("/proc/self/fd")
        for number in range(1000):
            spec = self.web("true", files=files)
            if number == 500:
                os.mkfifo(self.folder / "pipe")
            fds: list[int] = []
            try:
                inputs.prepare(spec, account, fds)
            except sidecar_init._CannotStart:
                self.assertGreaterEqual(number, 500)
            sidecar_init._close(*fds)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_a_start_that_fails_costs_no_descriptor_either(self) -> None:
        spec = self.web("exec sleep 60", files={"KEY": self.key, "GONE": f"{self.folder}/gone", "LAST": self.key})
        supervisor = self.supervise(spec)
        [daemon] = supervisor._daemons
        before = os.listdir("/proc/self/fd")
        for _ in range(20):
            refusal = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            with mock.patch("os.fork", side_effect=refusal), self.assertRaises(sidecar_init._CannotStart):
                daemon.run(spec.argv, daemon.output)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_it_cannot_be_made_executable(self) -> None:
        """Since Linux 6.3."""
        try:
            os.close(os.memfd_create("probe", 8))
        except OSError:
            self.skipTest("no MFD_NOEXEC_SEAL before Linux 6.3")
        said = self.says("chmod 500 $KEY 2>/dev/null || echo refused", files={"KEY": self.key})
        self.assertEqual(said, ["refused"])

    def test_the_contents_are_sealed(self) -> None:
        seals = "import fcntl, sys; print(fcntl.fcntl(int(sys.argv[1][-1]), fcntl.F_GET_SEALS) & 15)"
        write = "(echo x >&3) 2>/dev/null || echo refused"
        said = self.says(f"python3 -c '{seals}' $KEY; {write}; cat $KEY", files={"KEY": self.key})
        self.assertEqual(said, ["15", "refused", "contents"])

    def assert_refused(self, reason: str, **fields: Any) -> None:
        """It does not start, and is tried again."""
        supervisor = self.supervise(self.web("echo it runs", **fields))
        self.tick_until(supervisor, lambda: self.logged().count(reason) > 1, "two tries")
        [daemon] = supervisor._daemons
        self.assertEqual((daemon.state, daemon.history.reason), ("backoff", reason))
        self.assertNotIn("it runs", self.logged())

    def test_what_is_no_file_of_limited_size_is_refused_with_the_reason(self) -> None:
        os.mkfifo(self.folder / "pipe")
        self.write("large", "x" * (LIMIT + 1))
        for name, reason in (
            ("pipe", "it is not a regular file"),
            (".", "it is not a regular file"),
            ("large", "it has more than 1024 KiB"),
        ):
            path = f"{self.folder}/{name}"
            with self.subTest(name):
                self.assert_refused(f"cannot read KEY from {path}: {reason}", files={"KEY": path})

    def test_a_device_is_refused(self) -> None:
        for name in ("null", "zero", "tty"):
            path = f"/dev/{name}"
            with self.subTest(path):
                self.assert_refused(f"cannot read KEY from {path}: it is not a regular file", files={"KEY": path})

    def test_so_it_is_again_when_the_reason_has_gone(self) -> None:
        path = self.folder / "later"
        path.mkdir()
        supervisor = self.supervise(self.web("cat $KEY", files={"KEY": str(path)}))
        self.tick_until_logged(supervisor, "it is not a regular file")
        path.rmdir()
        path.write_text("at last")
        self.tick_until_logged(supervisor, "[web] at last")

    def test_a_file_that_grows_does_not_hold_up_the_supervisor(self) -> None:
        path = Path(self.write("grows", "x" * LIMIT))
        with path.open("a") as writer:
            writer.write("x")
        self.assert_refused(f"cannot read KEY from {path}: it has more than 1024 KiB", files={"KEY": str(path)})


@unittest.skipUnless(os.geteuid() == 0, "only root has another file system uid")
class FileSystemUser(UnitTest):
    """PID 1 takes another one for one call, and is unreadable again after it."""

    def setUp(self) -> None:
        self.kernel, self.calls = sidecar_init._Kernel(), list[tuple[str, int, int]]()

        def prctl(option: int, value: int, *_: int) -> int:
            self.calls.append(("prctl", option, value))
            return 0

        libc = {"prctl": prctl, "setfsuid": lambda uid: self.calls.append(("setfsuid", uid, 0))}
        self.enterContext(mock.patch.object(self.kernel, "_function", libc.__getitem__))
        self.around = [("setfsuid", 1000, 0), ("setfsuid", 0, 0), ("prctl", sidecar_init._PR_SET_DUMPABLE, 0)]

    def test_it_is_taken_back_after_the_call(self) -> None:
        self.assertEqual(self.kernel.as_user(1000, lambda: len(self.calls)), 1)
        self.assertEqual(self.calls, self.around)

    def test_so_it_is_if_the_call_fails(self) -> None:
        with self.assertRaises(FileNotFoundError):
            self.kernel.as_user(1000, lambda: os.stat("/no/such/file"))
        self.assertEqual(self.calls, self.around)

    def test_every_file_is_read_so(self) -> None:
        folder = self.directory()
        (folder / "key").write_text("contents")
        os.chown(folder / "key", 1000, 1000)
        null = os.open(os.devnull, os.O_WRONLY)
        self.close_later(null)
        spec = _DaemonSpec("web", ["true"], files={"KEY": f"{folder}/key"})
        inputs = sidecar_init._Inputs([spec], {}, self.kernel, sidecar_init._Log(null, NO_SECRETS))
        found = inputs._folders[str(folder)]
        assert isinstance(found, int)
        self.close_later(found)
        fds: list[int] = []
        look_up = mock.patch.object(self.kernel, "open_beneath", lambda fd, name: os.open(name, os.O_PATH, dir_fd=fd))
        self.enterContext(look_up)
        inputs.prepare(spec, sidecar_init._Account("web", 1000, 1000, "/"), fds)
        sidecar_init._close(*fds)
        self.assertEqual(self.calls, self.around * 2, "to read it, and to make the file in memory")


@unittest.skipUnless(os.geteuid() == 0, "without root it is a plain open")
class Folders(FilesTest):
    """As root, PID 1 reads only below folders that no daemon can change."""

    def refusal(self, path: str) -> str:
        supervisor = self.supervise(self.web("echo it runs", files={"KEY": path}))
        [daemon] = supervisor._daemons
        wait_until(lambda: supervisor.tick() or daemon.history.reason, 10, "the reason")
        self.assertNotIn("it runs", self.logged())
        return daemon.history.reason.removeprefix(f"cannot read KEY from {path}: ")

    def test_one_that_another_may_change_is_refused(self) -> None:
        why = f"{self.folder} may be changed by others; root must own it, with mode 0755 or less"
        for mode, owner in ((0o777, 0), (0o1777, 0), (0o775, 0), (0o757, 0), (0o700, 65534)):
            with self.subTest(mode=oct(mode), owner=owner):
                self.folder.chmod(mode)
                os.chown(self.folder, owner, owner)
                self.assertEqual(self.refusal(self.key), why)

    def test_a_link_is_followed_below_it(self) -> None:
        """As Kubernetes arranges a secret."""
        (self.folder / "..2026").mkdir()
        (self.folder / "..2026/token").write_text("old")
        (self.folder / "..data").symlink_to("..2026")
        (self.folder / "token").symlink_to("..data/token")
        spec = self.web("cat $KEY; echo; exec sleep 60", files={"KEY": f"{self.folder}/token"})
        supervisor = self.supervise(spec)
        self.tick_until_logged(supervisor, "[web] old")
        (self.folder / "..2027").mkdir()
        (self.folder / "..2027/token").write_text("new")
        (self.folder / "..data_tmp").symlink_to("..2027")
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        supervisor.restart_daemon("web")
        self.tick_until_logged(supervisor, "[web] new")

    def test_a_link_that_leads_out_of_it_is_refused(self) -> None:
        link = self.folder / "link"
        for target in ("/etc/passwd", "../../etc/passwd", "/proc/self/environ", "/proc/self/fd/0", "link"):
            with self.subTest(target):
                link.unlink(missing_ok=True)
                link.symlink_to(target)
                self.assertEqual(self.refusal(str(link)), "its link leads out of its folder")

    def test_so_is_a_magic_link(self) -> None:
        self.assertEqual(self.refusal("/proc/self/cwd"), "its link leads out of its folder")


if __name__ == "__main__":
    unittest.main()
