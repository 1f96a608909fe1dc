"""A real SLURM cluster on this one machine, for tests.

Two `slurmd` play two nodes of 8 CPUs and 8 GPUs each; `slurmctld`, `slurmdbd` and MariaDB are what
a user's cluster has, so that queueing, signals, time limits, node failure, preemption and `sacct`
behave as there. Only the GPUs are fake: character devices that nothing opens.

Debian packages: slurm-wlm, slurmdbd, munge, mariadb-server. Needs root, but no systemd.

What SLURM 22.05 was seen to do here:

- Time limits are whole minutes, looked at every 30 s: `--signal=USR2@N` comes N to N + 30 s before
  the limit, SIGTERM 0 to 30 s after it, SIGKILL 10 s (`KillWait`) later.
- That signal goes to every process of every step, children of tasks included, but not to the batch
  script; with `B:USR2@N` to the batch script alone.
- A killed node is DOWN, and its jobs are requeued, after 15 s; they may start again 6 s later.
- A job in `main` gets nodes from one in `preemptable` so: within 2 s that one gets the signal of
  its `--signal`, or its steps get SIGTERM if it has none; after `GraceTime` all of it gets SIGTERM,
  10 s later SIGKILL, and it is requeued. If its script ends before, it is not requeued.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

CAP = 900  # seconds, after which something hangs

NODES = ("n1", "n2")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PROGRAMS = ["munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch"]

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
# For slurmstepd; the daemons log to stderr.
SlurmdLogFile={folder}/log/slurmstepd.%n.log
# Holds the sockets of slurmstepd.
SlurmdSpoolDir={run}/%n
# A requeued job waits for cred_expire seconds (default 120) before it may start again. More than
# MessageTimeout: so long slurmctld tries to tell a dead node to end the job, and a node that comes
# back then would end the job's next run.
AuthInfo=socket={run}/munge,cred_expire=12
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
# With munge this is no password but the socket.
AccountingStoragePass={run}/munge
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
ProctrackType=proctrack/linuxproc
# The machine may have fewer CPUs and less memory than its nodes.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
ReturnToService=2
# A busy machine may keep a node that lives from answering for some seconds.
MessageTimeout=10
SlurmdTimeout=15
KillWait=10
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_resolution=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# A preempted job gets the signal of its --signal, if it has one, instead of SIGTERM.
SlurmctldParameters=preempt_send_user_signal
NodeName=DEFAULT CPUs=8 RealMemory=10000 Gres=gpu:8
NodeName=n[1-2] NodeHostName={host} NodeAddr=127.0.0.1 Port=[{n1_port},{n2_port}]
PartitionName=main Nodes=n[1-2] Default=YES PriorityTier=10
PartitionName=preemptable Nodes=n[1-2] PriorityTier=1 GraceTime=30
"""

SLURMDBD_CONF = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
PidFile={run}/slurmdbd.pid
AuthInfo=socket={run}/munge
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""


def missing_requirements() -> str:
    """Say in one line why no cluster can be started on this machine; '' when it can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        packages = "the Debian packages slurm-wlm, slurmdbd, munge and mariadb-server"
        return f"a SLURM cluster needs {packages}; not found: {', '.join(missing)}"
    if os.geteuid() != 0:
        return f"a SLURM cluster needs root; this is user id {os.geteuid()}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_device(Path(folder) / "gpu")
        except OSError as error:
            return f"a SLURM cluster needs device files for its fake GPUs; mknod failed: {error}"
    return ""


def _make_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # the same as /dev/null


def _free_ports(count: int) -> list[int]:
    """Ports that no outgoing connection is given, so those of a node that is down stay free."""
    ports: list[int] = []
    # Not the global generator: tests seed it, and two clusters would choose the same ports.
    for port in random.SystemRandom().sample(range(20000, 32000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"found {len(ports)} free ports in 20000-31999; a cluster needs {count}")


def _answers(address: str | tuple[str, int]) -> bool:
    """Whether something listens there: a path or (host, port)."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        return probe.connect_ex(address) == 0


def _processes(conf: Path, name: str | None) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            environ = (process / "environ").read_text(errors="replace").split("\0")
            variables = dict(item.split("=", 1) for item in environ if "=" in item)
            # slurmd hands the first name on to slurmstepd, which gives its tasks the second one.
            its_name = variables.get("TEST_SLURM_NAME") or variables.get("SLURMD_NODENAME")
            if variables.get("SLURM_CONF") == str(conf) and its_name and name in (None, its_name):
                program = (process / "comm").read_text().strip()
                rank = ["slurmd", "slurmstepd", program].index(program)
                found.append((rank, int(process.name)))
    return [pid for _, pid in sorted(found)]


def kill_processes(conf: Path, name: str | None = None) -> None:
    """Kill processes of a cluster, known by their environment; return when they are gone.

    Those that would report the end of others come first: a dead node reports nothing.

    Args:
        conf: the `slurm.conf` of the cluster.
        name: a daemon, or a node: its `slurmd` and all processes of its jobs. None: everything.
    """
    deadline = time.monotonic() + CAP
    while pids := _processes(conf, name):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {pids} of {conf} are still there {CAP} s after SIGKILL")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


class SlurmCluster:
    """Nodes n1 and n2; partitions `main` (default) and `preemptable`, which gives way to `main`.

    Args:
        folder: new or empty folder, for configuration, logs and state.

    Attributes:
        env: what `sbatch`, `squeue`, `sacct` and so on need in their environment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.conf = self.folder / "slurm.conf"
        self.env: dict[str, str] = {"SLURM_CONF": str(self.conf)}
        self._run: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._complaint = ""  # of the last client that failed

    def __enter__(self) -> SlurmCluster:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons; return when both nodes are idle and `sacct` works.

        Raises:
            RuntimeError: something is missing or does not come up; has the end of its log.
        """
        if missing := missing_requirements():
            raise RuntimeError(missing)
        begin = time.monotonic()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop)
            # Not in `folder`: the path of a socket has at most 107 characters.
            self._run = Path(tempfile.mkdtemp(prefix="slurm"))
            guard = [sys.executable, str(Path(__file__).resolve()), str(self.conf), str(self._run)]
            self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
            self._start_all(self._run)
            self.wait_idle()
            self._wait(lambda: not self._client("sacct").returncode, "sacct to work", "slurmdbd")
            on_failure.pop_all()
        logger.info("SLURM cluster in %s: up in %.1f s", self.folder, time.monotonic() - begin)

    def stop(self) -> None:
        """Cancel all jobs and end every process; fine after a failed start, and twice."""
        if "slurmctld" in self._daemons:
            # For clients that wait for a job; its processes may hang, and are killed below.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._client("scancel", "--me", timeout=5)
        kill_processes(self.conf)  # at once: none of its state is used again
        while self._daemons:
            self._daemons.popitem()[1].wait()
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None
        if self._run is not None:
            shutil.rmtree(self._run, ignore_errors=True)  # the guard has done it
            self._run = None

    def stop_node(self, name: str) -> None:
        """Kill a node: its `slurmd` and all processes of its jobs. SLURM has to find out."""
        kill_processes(self.conf, name)
        self._daemons.pop(name).wait()

    def start_node(self, name: str) -> None:
        """Start a node after `stop_node`; return when SLURM may give it jobs."""
        before = self._node(name).get("SlurmdStartTime")

        def registered() -> bool:
            # The state alone is no proof: SLURM may not have noticed that the node was down.
            node = self._node(name)
            return node.get("SlurmdStartTime") != before and "DOWN" not in node.get("State", "DOWN")

        self._start_daemon(name, ["slurmd", "-D", "-N", name], registered)

    def wait_idle(self, timeout: float = CAP) -> None:
        """Wait until no job is left and both nodes are idle; RuntimeError after `timeout` s."""

        def idle() -> bool:
            jobs = self._client("squeue", "--noheader")
            states = {self._node(name).get("State") for name in NODES}
            return jobs.returncode == 0 and not jobs.stdout and states == {"IDLE"}

        self._wait(idle, "idle nodes and no jobs", "slurmctld", timeout)

    def _start_all(self, run: Path) -> None:
        for name in ["log", "state", "gpus"]:
            (self.folder / name).mkdir(parents=True)
        for i in range(8):
            _make_device(self.folder / "gpus" / str(i))
        host = socket.gethostname().split(".")[0]
        names = ["slurmctld_port", "slurmdbd_port", "n1_port", "n2_port"]
        ports = dict(zip(names, _free_ports(4), strict=True))
        for name, content in {
            "munge.key": os.urandom(64).hex(),
            "slurm.conf": SLURM_CONF.format(folder=self.folder, run=run, host=host, **ports),
            "slurmdbd.conf": SLURMDBD_CONF.format(run=run, host=host, **ports),
            "gres.conf": f"Name=gpu File={self.folder}/gpus/[0-7]\n",
        }.items():
            (self.folder / name).touch(mode=0o600)  # slurmdbd and munged demand it
            (self.folder / name).write_text(content)

        munged = [
            *["munged", "--foreground", "--force"],  # force: its folders are private
            *[f"--key-file={self.folder}/munge.key", f"--log-file={self.folder}/log/munge.log"],
            *[f"--socket={run}/munge", f"--pid-file={run}/munge.pid", f"--seed-file={run}/seed"],
        ]
        self._start_daemon("munged", munged, lambda: _answers(f"{run}/munge"))

        options = [
            *["--no-defaults", "--user=root", f"--datadir={self.folder}/mysql"],
            *["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0"],
            *["--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M"],
        ]
        no_password = "--auth-root-authentication-method=normal"
        if self._client("mariadb-install-db", *options, "--skip-test-db", no_password).returncode:
            raise RuntimeError(self._complaint)
        mysql = [f"--socket={run}/mysql", f"--pid-file={run}/mysql.pid", "--skip-networking"]
        mariadbd = ["mariadbd", *options, *mysql]
        self._start_daemon("mariadbd", mariadbd, lambda: _answers(f"{run}/mysql"))

        add = ["sacctmgr", "--immediate", "add", "cluster", "test"]
        self._start_daemon(
            "slurmdbd", ["slurmdbd", "-D"], lambda: not self._client(*add).returncode
        )
        address = ("127.0.0.1", ports["slurmctld_port"])
        self._start_daemon("slurmctld", ["slurmctld", "-D"], lambda: _answers(address))
        for name in NODES:
            self.start_node(name)

    def _start_daemon(self, name: str, command: list[str], ready: Callable[[], bool]) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MYSQL"))}
        environ |= self.env | {"PATH": PATH, "TEST_SLURM_NAME": name}
        environ["MYSQL_UNIX_PORT"] = f"{self._run}/mysql"  # how slurmdbd finds mariadbd
        with (self.folder / "log" / f"{name}.log").open("a") as log:
            # A session of its own: Ctrl-C is for the tests, and they stop the cluster.
            self._daemons[name] = subprocess.Popen(
                command, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        self._wait(ready, f"{name} to be ready", name)

    def _wait(self, done: Callable[[], bool], what: str, name: str, timeout: float = CAP) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            ended = {k: v.returncode for k, v in self._daemons.items() if v.poll() is not None}
            if ended or time.monotonic() > deadline:
                reason = f"{ended} ended" if ended else f"{timeout:.0f} s are over"
                log = self.folder / "log" / f"{next(iter(ended), name)}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                message = f"waited for {what}, but {reason}; end of {log}:\n{tail}"
                raise RuntimeError(f"{message}\nlast failure of a client: {self._complaint}")
            time.sleep(0.1)

    def _node(self, name: str) -> dict[str, str]:
        """Fields of a node; empty if SLURM gives none."""
        words = self._client("scontrol", "show", "node", name).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _client(self, *command: str, timeout: float = CAP) -> subprocess.CompletedProcess[str]:
        env = os.environ | self.env | {"PATH": PATH}
        done = subprocess.run(command, env=env, timeout=timeout, text=True, capture_output=True)
        if done.returncode != 0:
            self._complaint = f"{command[0]}: {done.stdout}{done.stderr}"
        return done


if __name__ == "__main__":
    # The guard: its input ends with the tests, also when they are killed and cannot call `stop`.
    sys.stdin.buffer.read()
    kill_processes(Path(sys.argv[1]))
    shutil.rmtree(sys.argv[2], ignore_errors=True)
