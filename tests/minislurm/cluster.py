"""Start and stop a real Slurm on one machine: see README.md."""

import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import conf
from .daemon import Daemons, Process, ancestors, end, processes_with, start_time, wait_for

INSTALL = "apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # the daemons live where a user's PATH may not look
REPOSITORY = Path(__file__).parents[2]
MARK = "MINISLURM_DIR"  # in the environment of all daemons, and of the slurmstepd they start
LONGEST_DIR = 60  # a unix socket's path has at most 107 characters, and Slurm adds <spool>/n1/n1_<job>.<step>

# A database that is thrown away need not survive a power cut.
MARIADB_OPTIONS = (
    "--innodb-log-file-size=4M",
    "--innodb-flush-log-at-trx-commit=0",
    "--skip-innodb-doublewrite",
    "--innodb-use-native-aio=0",
)


def missing(accounting: bool = True) -> str | None:
    """Why no cluster can start here, and the line that mends it; None when all is there."""
    programs = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    absent = [name for name in programs if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)} here; as root: {INSTALL}"
    return None if os.geteuid() == 0 else "a test cluster needs root (device files, slurmd)"


class Cluster:
    """One cluster in one directory; also the handle of a running one: ``Cluster(dir).stop()``."""

    def __init__(
        self,
        dir: str | Path | None = None,
        *,
        accounting: bool = True,
        limits: bool = False,
        settings: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        """Nothing is started yet.

        Parameters
        ----------
        dir
            A new or empty directory with a short path; a temporary one by default.
        accounting
            With slurmdbd, and so sacct; without, the start takes a quarter of the time.
        limits
            Slurm enforces the limits of associations and QOS, as set with sacctmgr.
        settings
            slurm.conf keys to add or to override.
        files
            Texts of further files beside slurm.conf, by name: job_submit.lua.
        """
        self.dir = Path(dir or tempfile.mkdtemp(prefix="minislurm-", dir="/tmp")).absolute()
        if len(str(self.dir)) > LONGEST_DIR:
            raise ValueError(f"{self.dir}: at most {LONGEST_DIR} characters, for the unix sockets inside")
        self.accounting = accounting
        self.limits = limits
        self.settings = settings or {}
        self.files = files or {}
        self.daemons = Daemons(self.dir)

    @property
    def conf(self) -> Path:
        return self.dir / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """This process's environment without any other cluster's or job's variables, and with SLURM_CONF."""
        prefixes = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
        return kept | {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def run(self, *argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command against this cluster; CalledProcessError carries what it said as a note."""
        try:
            return subprocess.run(argv, env=self.env, check=True, text=True, capture_output=True, timeout=timeout)
        except subprocess.CalledProcessError as error:
            error.add_note(f"{error.stdout}{error.stderr}")
            raise

    def start(self) -> "Cluster":
        """Start everything; returns when all nodes take jobs.

        Raises RuntimeError where Slurm is missing, and DaemonError with the end of the log of what did not come up;
        what was started until then is ended.
        """
        if reason := missing(self.accounting):
            raise RuntimeError(reason)
        self.dir.mkdir(parents=True, exist_ok=True)
        if any(self.dir.iterdir()):
            raise FileExistsError(f"{self.dir} is not empty")
        try:
            self._write_files()
            self.start_daemon("munged")
            if self.accounting:
                self._start_accounting()
            for name in ("slurmctld", *conf.NODES):
                self.start_daemon(name, wait=False)
            self.daemons.wait(("slurmctld", *conf.NODES), self._all_nodes_up, 30)
        except BaseException:
            self.stop()
            raise
        return self

    def guard(self) -> None:
        """Start a process that stops the cluster when this one ends in whatever way, SIGKILL included."""
        argv = [sys.executable, "-m", "tests.minislurm", "guard", "--dir", str(self.dir), "--pid", str(os.getpid())]
        self.daemons.spawn("guard", argv, self._daemon_env | {"PYTHONPATH": str(REPOSITORY)})

    def stop(self) -> None:
        """End all jobs and daemons; harmless when some or all have ended, and when start failed half-way.

        Jobs end first, by scancel, while there is somebody to end them. What is left then (a job whose slurmd is
        gone) is found by its environment.
        """
        if self.daemons.alive("slurmctld"):
            self._cancel_all()
        mine = [name for name in self.daemons.names() if self.daemons.process(name) != _self()]
        self.daemons.end(mine, patience=5)
        end(self._leftovers(), patience=2)

    def start_daemon(self, name: str, wait: bool = True) -> None:
        """Start (again) munged, mariadbd, slurmdbd, slurmctld, or the slurmd of a node (``n1``)."""
        argv, ready = self._daemon(name)
        self.daemons.spawn(name, argv, self._daemon_env)
        if wait:
            self.daemons.wait([name], ready, 30)

    def _daemon(self, name: str) -> tuple[list[str], Callable[[], bool]]:
        """How to start a daemon, in the foreground, and how to see that it is ready."""
        root = self.dir
        if name == "munged":
            files = [f"--{key}={root}/munge/{key}" for key in ("key-file", "socket", "pid-file", "seed-file")]
            argv = ["munged", "--foreground", "--force", *files]  # --force: the directories above may be anyone's
            return argv, lambda: _listens(root / "munge/socket")
        if name == "mariadbd":
            argv = ["mariadbd", "--no-defaults", "--user=root", *self._database_folders, f"--socket={root}/db.socket"]
            return [*argv, "--skip-networking", *MARIADB_OPTIONS], lambda: _listens(root / "db.socket")
        if name == "slurmdbd":
            return ["slurmdbd", "-D"], lambda: self._answer("sacctmgr", "-nP", "show", "cluster") is not None
        if name == "slurmctld":
            return ["slurmctld", "-D"], lambda: self._answer("scontrol", "show", "config") is not None
        return ["slurmd", "-D", "-N", name], lambda: self._slurmd_ready(name)

    @property
    def _database_folders(self) -> tuple[str, str]:
        """Temporary tables in a folder of its own: a server that starts removes those of others, and they crash."""
        return f"--datadir={self.dir}/db", f"--tmpdir={self.dir}/db-tmp"

    @property
    def _daemon_env(self) -> dict[str, str]:
        # MYSQL_UNIX_PORT: slurmdbd.conf has no key for the database's socket.
        return self.env | {MARK: str(self.dir), "MYSQL_UNIX_PORT": f"{self.dir}/db.socket"}

    def _write_files(self) -> None:
        root, ports, host = self.dir, conf.free_ports(), conf.this_host()
        for name in ("run", "log", "munge", "state", "spool", "db", "db-tmp"):
            (root / name).mkdir()
        for path in (root, root / "munge"):
            path.chmod(0o755)
        for gpu in range(conf.GPUS):
            os.mknod(root / f"nvidia{gpu}", stat.S_IFCHR | 0o666, os.makedev(195, gpu))
        settings = conf.accounting_settings(root, ports, host, self.limits) if self.accounting else {}
        self.conf.write_text(conf.slurm_conf(root, ports, host, settings | self.settings))
        (root / "gres.conf").write_text(conf.gres_conf(root))
        for name, text in {"plugstack.conf": "", **self.files}.items():
            (root / name).write_text(text)
        _write_secret(root / "slurmdbd.conf", conf.slurmdbd_conf(root, ports, host).encode())
        _write_secret(root / "munge/key-file", secrets.token_bytes(128))

    def _start_accounting(self) -> None:
        install = ["mariadb-install-db", "--no-defaults", "--user=root", *self._database_folders, *MARIADB_OPTIONS]
        self.run(*install, "--auth-root-authentication-method=socket", "--skip-test-db")
        self.start_daemon("mariadbd")
        self.start_daemon("slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "minislurm")
        self.run("sacctmgr", "-i", "add", "account", "mini")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=mini", "defaultaccount=mini")

    def _answer(self, *argv: str) -> str | None:
        """What a Slurm command says; None when it fails, or still tries to reach its daemon after two seconds."""
        try:
            return self.run(*argv, timeout=2).stdout
        except subprocess.SubprocessError:
            return None

    def _all_nodes_up(self) -> bool:
        states = self._answer("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t")
        return states is not None and states.split() == ["idle"] * len(conf.NODES)

    def _slurmd_ready(self, node: str) -> bool:
        """slurmd writes its own pid file once it listens."""
        path, process = self.dir / f"spool/{node}.pid", self.daemons.process(node)
        return process is not None and path.exists() and path.read_text().strip() == str(process[0])

    def _cancel_all(self) -> None:
        try:
            self.run("scancel", "--user=root", timeout=10)
            wait_for(lambda: not self.run("squeue", "--noheader", timeout=10).stdout.strip(), 10)
        except subprocess.SubprocessError:
            pass  # a controller that cannot cancel is ended all the same, and its jobs by _leftovers

    def _leftovers(self) -> list[Process]:
        """Daemons without a pid file, slurmstepd, and jobs' processes; never the caller's own line of processes."""
        marked = processes_with(f"{MARK}={self.dir}")
        jobs = processes_with(f"SLURM_CONF={self.conf}", "SLURM_JOB_ID=")
        return [process for process in {*marked, *jobs} if process[0] not in ancestors()]


def _self() -> Process:
    return os.getpid(), start_time(os.getpid()) or 0


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def _write_secret(path: Path, content: bytes) -> None:
    """Both munge and slurmdbd refuse a file that others can read."""
    path.touch(mode=0o600)
    path.write_bytes(content)
