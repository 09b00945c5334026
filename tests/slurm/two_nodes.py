"""A real SLURM cluster of two nodes on this machine, in a folder and on ports of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

CONF = """
ClusterName=relief-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
SlurmdTimeout=8
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{second_port}] CPUs=1
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why a cluster cannot run here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "a SLURM cluster of one's own needs root"


def search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def free_ports() -> tuple[int, int, int]:
    """Return three free ports, the last two side by side."""
    for first in range(21000 + os.getpid() % 5000, 32000, 3):
        sockets = [socket.socket() for _ in range(3)]
        try:
            for i, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + i))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first, first + 1, first + 2
    raise OSError("no three free ports in a row")


class TwoNodes:
    """Munge, a controller and two node daemons; used as a context manager.

    Args:
        folder: for configuration, state, keys and logs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"), "PATH": search_path(),
        }  # fmt: skip
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "TwoNodes":
        self.folder.mkdir(parents=True)
        (self.folder / "state").mkdir()
        controller, first, second = free_ports()
        text = CONF.format(
            host=socket.gethostname(), folder=self.folder, controller_port=controller,
            first_port=first, second_port=second,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log",
                 "seed-file": "seed"}  # fmt: skip
        where = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
        try:
            self._start("munged", "munged", "--foreground", "--force", "--num-threads=2", *where)
            self._wait_for(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "slurmctld", "-D")
            for node in ("n1", "n2"):
                self._start(node, "slurmd", "-D", "-N", node)
            self._wait_for(lambda: self.run("sinfo", "-h", "-o", "%D %t").strip() == "2 idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._jobs():
            _kill(process)
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Return what a SLURM command prints."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or command[0] == "sinfo", done.stderr
        return done.stdout

    def is_over(self, job: str) -> bool:
        """Return whether no task of a job runs or waits."""
        return not self.run("squeue", "-h", "-a", "-j", job, "-t", "PD,R,CG,CF,S,RQ").strip()

    def waiting(self, job: str) -> list[str]:
        """Return the tasks of a job that wait to run."""
        return self.run("squeue", "-h", "-r", "-j", job, "-t", "PD", "-o", "%i").split()

    def hurry(self, job: str) -> bool:
        """Let the waiting tasks of a job start now; return whether the job is over."""
        for task in self.waiting(job):
            try:
                self.run("scontrol", "update", f"JobId={task}", "StartTime=now")
            except AssertionError:
                if task in self.waiting(job):  # else it started by itself meanwhile
                    raise
        return self.is_over(job)

    def kill_node(self, node: str) -> int:
        """Kill a node's daemon and all that runs there; return how many processes that were."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        victims = self._jobs(node)
        for process in victims:
            _kill(process)
        return len(victims)

    def _start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.out").open("wb")
        with log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _jobs(self, node: str | None = None) -> list[psutil.Process]:
        """Return the processes of jobs, with the step daemons above them first."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                is_ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                where = environment.get("SLURMD_NODENAME")
                if not is_ours or where is None or node not in (None, where):
                    continue
                for parent in process.parents():
                    if parent.name() == "slurmstepd":
                        found.setdefault(parent.pid, parent)
                found[process.pid] = process
            except psutil.Error:
                continue
        return sorted(found.values(), key=lambda p: p.name() != "slurmstepd")

    def _wait_for(self, condition, timeout_s: float = 40.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            dead = [name for name, d in self._daemons.items() if d.poll() is not None]
            logs = [self.folder / f"{name}.out" for name in dead]
            assert not dead, "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
            assert time.monotonic() < deadline, self.run("sinfo")
            time.sleep(0.1)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
