"""A cluster that keeps accounts: the same Slurm with slurmdbd and a MariaDB behind it."""

from __future__ import annotations

import secrets

import debian
from slurm_cluster import Cluster, free_ports, wait_until

PACKAGES = ("slurmdbd", "mariadb-server")
PROGRAMS = ("slurmdbd", "mariadbd", "mariadb", "mariadb-install-db")

ACCOUNTS = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
# those who ask slurmdbd do not read AuthInfo
AccountingStoragePass={folder}/munge/socket
JobAcctGatherType=jobacct_gather/linux
"""

DAEMON = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=accounts
"""


class AccountedCluster(Cluster):
    """A `Cluster` whose ended jobs `sacct` knows."""

    def _configure(self) -> None:
        super()._configure()
        host = self.configuration.read_text().partition("SlurmctldHost=")[2].partition("(")[0]
        dbd, self.database = free_ports(2)
        self.password = secrets.token_hex(16)
        with self.configuration.open("a") as file:
            file.write(ACCOUNTS.format(dbd=dbd, folder=self.folder))
        path = self.folder / "slurmdbd.conf"
        path.touch(mode=0o600)
        names = {"host": host, "dbd": dbd, "database": self.database, "password": self.password}
        path.write_text(DAEMON.format(folder=self.folder, **names))
        self.environment["SLURMDBD_CONF"] = str(path)

    def _before_the_controller(self) -> None:
        data, socket = self.folder / "database", self.folder / "database.socket"
        self.call(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
            "--skip-test-db", "--auth-root-authentication-method=socket",
        )  # fmt: skip
        self._daemon(
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket}",
            f"--pid-file={self.folder}/mariadbd.pid", "--bind-address=127.0.0.1",
            f"--port={self.database}", "--skip-name-resolve", "--skip-log-bin",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        client = ("mariadb", "--no-defaults", "-uroot", f"--socket={socket}", "-e")
        wait_until(lambda: self._says(*client, "SELECT 'up'") == "up", "mariadbd")
        user = f"slurm@127.0.0.1 IDENTIFIED BY '{self.password}'"
        self.call(*client, f"CREATE DATABASE accounts; CREATE USER {user}")
        self.call(*client, "GRANT ALL ON accounts.* TO slurm@127.0.0.1")
        self._daemon("slurmdbd", "-D")
        ask = ("sacctmgr", "-n", "-P", "show", "cluster", "format=cluster")
        wait_until(lambda: "error" not in self._says(*ask), "slurmdbd", 60)
        self.call("sacctmgr", "-i", "add", "cluster", "hipgen")

    def _says(self, *command: str) -> str:
        return self.call(*command, check=False).split("\n")[-2:][0]


def install() -> None:
    """Installs what keeps the accounts, when it is missing.

    Raises:
        Unavailable: when that cannot be done here.
    """
    debian.install(PACKAGES, PROGRAMS)
