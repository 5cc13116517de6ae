"""A Slurm of one node for tests: Debian's programs, with all that is theirs in one folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from servers import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
PACKAGES: Final = "munge slurmctld slurmd slurm-client util-linux"

SCRIPTS: Final = Path(__file__).parents[1] / "workflows" / "slurm"

_NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

# Nothing here needs systemd or control groups. A requeued job waits until its old credential
# has expired: two minutes, unless cred_expire says less.
_CONFIGURATION: Final = """
ClusterName=flowmap
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=8
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10
"""


class Cluster:
    """A cluster of one node, whose jobs are those of an ordinary user.

    Args:
        folder: Where its files are. Jobs are submitted in its folder `home`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        programs = Path(sys.executable).parent  # where `flowmap` is
        self._environment = {
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._user: tuple[str, ...] = _NOBODY
        if self._call("sh", "-c", "flowmap --version; exit $?").returncode:
            self._user = ()  # the checkout, or its Python, is closed to all but root
        else:
            os.chown(self.home, 65534, 65534)

    def run(self, *command: object) -> str:
        """Run a command as the user, in `home`; return what it printed."""
        done = self._call(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    @property
    def user(self) -> int:
        """The user whose jobs they are."""
        return 65534 if self._user else 0

    def _call(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._user, *map(str, command)],
            cwd=self.home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def write(self, name: str, text: str) -> None:
        """Make a file in `home`."""
        file = self.home / name
        file.write_text(text)
        if self._user:
            os.chown(file, 65534, 65534)

    def script(self, name: str, **changes: str) -> str:
        """Copy a script of the repository to `home`, with other values of some variables."""
        text = (SCRIPTS / name).read_text()
        for variable, value in changes.items():
            text, count = re.subn(
                rf"^{variable}=.*$", f"{variable}={value}", text, flags=re.MULTILINE
            )
            assert count == 1, (variable, text)
        made = f"{changes.get('array', '')}{name}"
        self.write(made, text)
        return made

    def submit(self, *command: object) -> str:
        """Call `sbatch`; return the number of the job."""
        return self.run("sbatch", "--parsable", *command).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm says of a job, or of a task of an array, "5_2"."""
        said = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def until_state(self, number: str, *states: str) -> dict[str, str]:
        """Wait until a job has one of some states; return what Slurm says of it."""
        return until(
            lambda: job if (job := self.job(number))["JobState"] in states else None,
            f"job {number} is {' or '.join(states)}",
        )

    def set_node(self, state: str) -> None:
        """Set the state of the node, as an administrator does."""
        node = self.run("sinfo", "--noheader", "--format=%n").strip()
        change = ["scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=a test"]
        subprocess.run(change, env=self._environment, check=True, timeout=60)

    def process(self, command: str) -> int:
        """Return the only process of the jobs whose command has a text."""
        (pid,) = (pid for pid in self._left() if command in _text_of(pid, "cmdline"))
        return pid

    def crash(self) -> None:
        """Kill what a crash of the node would, and start the node again."""
        left = self._left()
        starters = {int(_text_of(pid, "stat").rpartition(")")[2].split()[1]) for pid in left}
        slurmd = self._daemons.pop()
        slurmd.kill()
        slurmd.wait()
        for pid in [
            *(pid for pid in starters if "slurmstepd" in _text_of(pid, "cmdline")),
            *left,
        ]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._start("slurmd", "-D")

    def start(self) -> None:
        """Start the daemons; return once they take jobs."""
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        text = _CONFIGURATION.format(folder=folder, host=host, ports=_free_ports())
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = folder / "munge.key-file"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        places = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        munge = [f"--{place}={folder}/munge.{place}" for place in places]
        self._start("munged", "--foreground", "--force", *munge)
        until((folder / "munge.socket").exists, "munged answers")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        sinfo = ("sinfo", "--noheader", "--format=%T")
        until(lambda: "idle" in self._call(*sinfo).stdout, "the node is idle")

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._daemons.append(process)

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        self._call("scancel", "--full", f"--user={self.user}")
        with contextlib.suppress(AssertionError):
            until(lambda: not self._left(), "no job is left", seconds=20)
        for process in (*reversed(self._daemons),):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Return the processes that work in a folder of the cluster: those of its jobs."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                if (entry / "cwd").readlink().is_relative_to(self.folder):
                    found.append(pid)
        return found


def _text_of(pid: int, file: str) -> str:
    """Return a file of a process in /proc; an empty text if the process is gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in (one, other)]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Run a cluster for a `with` block, in a folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        cluster = Cluster(Path(made))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
