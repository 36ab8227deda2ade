"""A Slurm of several nodes on one machine, for the length of a test session.

Debian's own packages, started by root on the loopback device; everything lies in one short folder
and is gone afterwards. What can be undone and is outside of that folder: one line of /etc/hosts.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import debian
from debian import Unavailable, where

from hpc_hipgen.cluster.rendezvous import PORTS

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")
HOSTS = Path("/etc/hosts")
GPUS = {"a100-1": 8, "a100-2": 8, "spot-1": 2, "spot-2": 2, "cpu-1": 0}
"""The nodes and their GPUs, which are nothing but empty files."""

CONFIGURATION = """
ClusterName=hipgen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
# nothing listens on any other address than that of the host's name
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# a requeued job starts again after this many seconds; below 8 its old step may still be there
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
# the nodes say that they have what a real one has
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
# not those of the cluster before, nor, as ports follow from them, of another worker's beside it
FirstJobId={first_job}
# ended jobs can be asked for until the cluster is gone
MinJobAge=86400
JobRequeue=1
DependencyParameters=kill_invalid_depend
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a preempted job gets the signal that it asked for, and GraceTime to save
SlurmctldParameters=preempt_send_user_signal
KillWait=5
ReturnToService=1
MailProg=/bin/true
{nodes}
PartitionName=cpu Nodes=cpu-1 Default=YES MaxTime=2-0 DefaultTime=60
PartitionName=a100 Nodes=a100-[1-2] MaxTime=2-0 DefaultTime=60
PartitionName=spot Nodes=spot-[1-2] MaxTime=2-0 DefaultTime=60 GraceTime=30
PartitionName=urgent Nodes=spot-[1-2] MaxTime=2-0 DefaultTime=60 PriorityTier=10 PreemptMode=OFF
"""


class DaemonEndedError(RuntimeError):
    """A part of Slurm that ended by itself."""


class Cluster:
    """The running cluster: its environment and the few questions that tests ask it."""

    def __init__(self, folder: Path) -> None:
        """Gives names; `start` does the work."""
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.configuration)}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts all daemons and waits until every node is idle."""
        for name in ("munge", "state", *(f"spool-{node}" for node in GPUS)):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self._configure()
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge/socket",
            f"--pid-file={self.folder}/munge/pid",
            f"--seed-file={self.folder}/munge/seed",
            f"--log-file={self.folder}/munge/log",
        )
        wait_until((self.folder / "munge" / "socket").exists, "munged")
        self._before_the_controller()
        self._daemon("slurmctld", "-D", "-f", str(self.configuration))
        for node in GPUS:
            self._daemon("slurmd", "-D", "-f", str(self.configuration), "-N", node, name=node)
        wait_until(self._idle, "every node")

    def stop(self) -> None:
        """Ends all jobs and daemons, and whatever a job may have left."""
        self.call("scancel", "--user=root", check=False)
        wait_until(lambda: not self.queue(), "the end of all jobs", 20, fails=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for number in self._left():
            os.kill(number, signal.SIGKILL)

    def call(
        self, *command: str, check: bool = True, cwd: Path | None = None, **variables: str
    ) -> str:
        """Runs one of Slurm's commands; returns what it says, both streams."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, (
            f"{done.returncode} {' '.join(command)}: {done.stdout}"
        )
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows about a job: JobState, Restarts, NodeList, Dependency ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", "-o", number)))

    def queue(self) -> dict[str, str]:
        """State of every job, and of every task of an array, that has not ended."""
        # a job that was put back keeps a line of its old start while that one is cleaned up
        listed = self.call("squeue", "-h", "-r", "-o", "%i %T", check=False).splitlines()
        return dict(words for words in map(str.split, listed) if len(words) == 2)

    def wait(self, *jobs: str, seconds: float = 300) -> list[str]:
        """Waits until none of these jobs is in the queue; returns their states."""

        def ended() -> bool:
            waiting = {number.split("_")[0] for number in self.queue()}
            return not waiting & set(jobs)

        wait_until(ended, f"the end of {', '.join(jobs)}", seconds)
        return [self.job(number)["JobState"] for number in jobs]

    @contextmanager
    def without(self, setting: str) -> Iterator[None]:
        """The cluster as it is without a line of its configuration."""
        before = self.configuration.read_text()
        assert before.count(f"\n{setting}\n") == 1, setting
        self.configuration.write_text(before.replace(f"\n{setting}\n", "\n"))
        self.call("scontrol", "reconfigure")
        try:
            yield
        finally:
            self.configuration.write_text(before)
            self.call("scontrol", "reconfigure")

    def _before_the_controller(self) -> None:
        """Starts what the controller needs."""

    def _configure(self) -> None:
        """Writes slurm.conf and gres.conf, with ports that are free now."""
        host = socket.gethostname().split(".")[0]
        ports = free_ports(len(GPUS) + 1)
        nodes, devices = [], []
        for (node, gpus), port in zip(GPUS.items(), ports[1:], strict=True):
            line = f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            line += " CPUs=64 RealMemory=512000"
            if gpus:
                line += f" Gres=gpu:a100:{gpus}"
                for number in range(gpus):
                    (self.folder / f"spool-{node}" / f"nvidia{number}").touch()
                file = f"{self.folder}/spool-{node}/nvidia[0-{gpus - 1}]"
                devices.append(f"NodeName={node} Name=gpu Type=a100 File={file}")
            nodes.append(line)
        text = CONFIGURATION.format(
            host=host,
            port=ports[0],
            folder=self.folder,
            first_job=int(time.time()) % 5000 * PORTS + worker() * 1000 + 1,
            nodes="\n".join(nodes),
        )
        self.configuration.write_text(text)
        (self.folder / "gres.conf").write_text("\n".join(devices) + "\n")

    def _daemon(self, program: str, *arguments: str, name: str = "") -> None:
        """Starts a daemon in the foreground; it ends with this process, however that ends."""
        with (self.folder / f"{name or program}.log").open("wb") as log:
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", where(program) or program, *arguments],
                env={k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
                | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def _idle(self) -> bool:
        for daemon in self._daemons:
            if daemon.poll() is not None:
                logs = [path.read_text(errors="replace") for path in self.folder.glob("*.log")]
                last = [log.strip().rpartition("\n")[2] for log in logs]
                raise DaemonEndedError(f"{daemon.args[3]} ended; last lines of all logs: {last}")
        listed = self.call("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
        return len({line for line in listed if line.endswith(" idle")}) == len(GPUS)

    def _left(self) -> Iterator[int]:
        """Processes of jobs of this cluster that are still there."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            number = int(path.parent.name)
            try:
                if number != os.getpid() and mark in path.read_bytes().split(b"\0"):
                    yield number
            except OSError:
                continue


def install() -> None:
    """Installs Slurm from Debian's packages when it is missing.

    Raises:
        Unavailable: when that cannot be done here.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root can start the nodes of a Slurm on one machine")
    debian.install(PACKAGES, PROGRAMS)


@contextmanager
def names_resolved(folder: Path) -> Iterator[None]:
    """Names of the host and of the nodes mean 127.0.0.1 for a while.

    The host's name must: with it, daemons find the address to listen on. The nodes' names must for
    jobs of several nodes. The line stands first in /etc/hosts, which is changed in place (in a
    container it cannot be replaced), and is taken out again; lines of killed sessions are, too.

    Raises:
        Unavailable: when /etc/hosts cannot be changed.
    """
    host = socket.gethostname()
    names = dict.fromkeys([host, host.split(".")[0], *GPUS])
    line = f"127.0.0.1 {' '.join(names)} # tests/slurm of hpc_hipgen {folder}\n"
    try:
        with _hosts() as file:
            kept = [kept for kept in file if not _abandoned(kept)]
            _rewrite(file, [line, *kept])
    except OSError as error:
        raise Unavailable(f"node names cannot be given to {HOSTS}: {error}") from None
    try:
        yield
    finally:
        with _hosts() as file:
            _rewrite(file, [kept for kept in file if kept != line])


@contextmanager
def _hosts() -> Iterator[IO[str]]:
    with HOSTS.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _rewrite(file: IO[str], lines: list[str]) -> None:
    file.seek(0)
    file.write("".join(lines))
    file.truncate()


def _abandoned(line: str) -> bool:
    """True for a line of a session whose folder is gone."""
    _, marked, folder = line.partition(" # tests/slurm of hpc_hipgen ")
    return bool(marked) and not Path(folder.strip()).is_dir()


@contextmanager
def running_cluster(kind: type[Cluster] = Cluster) -> Iterator[Cluster]:
    """A cluster that is up; nothing of it is left afterwards.

    Raises:
        Unavailable: when this machine cannot have one.
    """
    install()
    with ExitStack() as stack:
        for tries_left in (2, 1, 0):  # a port that was free may be taken by now
            with ExitStack() as this:
                cluster = this.enter_context(_new_cluster(kind))
                try:
                    cluster.start()
                except DaemonEndedError:
                    if not tries_left:
                        raise
                    continue
                stack.push(this.pop_all())
                break
        yield cluster


@contextmanager
def _new_cluster(kind: type[Cluster]) -> Iterator[Cluster]:
    """A cluster in a folder of its own, which is stopped and removed afterwards."""
    # short, for the names of sockets, and open to all, which munged wants
    folder = Path(tempfile.mkdtemp(prefix="hipgen-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = kind(folder)
    try:
        with names_resolved(folder):
            try:
                yield cluster
            finally:
                cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def worker() -> int:
    """This process's number among those of pytest-xdist, 0 for a lone one."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_until(
    true: Callable[[], bool], what: str, seconds: float = 30, fails: bool = True
) -> None:
    """Asks again and again; after `seconds` that is an error, or is given up."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            assert not fails, f"waited {seconds:g} s for {what}"
            return
        time.sleep(0.2)
