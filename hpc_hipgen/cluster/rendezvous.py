"""Ranks find each other: the five variables that torch.distributed and DeepSpeed read.

Launched by submitit (Slurm or local) they come from the job; under torchrun they are there already;
a lone process is rank 0 of 1.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from hpc_hipgen.config import ConfigError

ADDRESS_VARIABLE = "HIPGEN_ADDRESS"
"""The `address` of the site, for jobs on several nodes."""

FIRST_PORT, PORTS = 20_000, 12_000  # below the ports that Linux gives to outgoing connections


@dataclass(frozen=True)
class Rendezvous:
    """Who this process is, and where rank 0 listens."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = FIRST_PORT

    def environment(self) -> dict[str, str]:
        """The variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def find() -> Rendezvous:
    """This process's rendezvous.

    The port of a job with several ranks is a function of its id, so that all ranks agree on it
    without talking and jobs that share a node rarely meet; a lone process needs none.
    """
    if os.environ.get("SUBMITIT_EXECUTOR"):
        return _of_job()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Rendezvous(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            address=os.environ.get("MASTER_ADDR", "127.0.0.1"),
            port=int(os.environ.get("MASTER_PORT", FIRST_PORT)),
        )
    return Rendezvous()


def export() -> Rendezvous:
    """Writes this process's rendezvous into os.environ and returns it."""
    found = find()
    os.environ.update(found.environment())
    return found


def _of_job() -> Rendezvous:
    import submitit

    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return Rendezvous()
    digits = "".join(c for c in job.raw_job_id if c.isdigit())
    return Rendezvous(
        rank=job.global_rank,
        world_size=job.num_tasks,
        local_rank=job.local_rank,
        address=_address(job.hostnames[0]) if job.num_nodes > 1 else "127.0.0.1",
        port=FIRST_PORT + int(digits) % PORTS,
    )


def _address(host: str) -> str:
    """By which other nodes reach a node.

    Raises:
        ConfigError: when this one does not know it: torch would try for half an hour.
    """
    address = os.environ.get(ADDRESS_VARIABLE, "{host}").replace("{host}", host)
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise ConfigError(
            f"{address}: {socket.gethostname()} does not know this name of rank 0's node ({error});"
            ' say in the site file how nodes reach each other: address: "{host}i", for example'
        ) from None
    return address
