import socket

import pytest

from hpc_hipgen.cluster import rendezvous
from hpc_hipgen.config import ConfigError


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # so that what a test exports is undone
        monkeypatch.delenv(name)
    for name in ("SUBMITIT_EXECUTOR", rendezvous.ADDRESS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", known)


def known(host, port):
    if host not in ("a100-03", "a100-03i"):
        raise socket.gaierror("Name or service not known")


def slurm(monkeypatch, rank, tasks=16, nodes=2):
    values = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": str(tasks),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NODEID": str(rank // 8),
        "SLURM_JOB_NODELIST": "a100-[03-04]" if nodes == 2 else "a100-03",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % 8),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_lone_process_is_rank_0_of_1():
    found = rendezvous.export()
    assert (found.rank, found.world_size, found.local_rank) == (0, 1, 0)


def test_torchrun_is_left_alone(monkeypatch):
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}
    given["MASTER_ADDR"] = "node1"
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert rendezvous.export().environment() == given


def test_slurm_ranks_agree_on_the_first_node_and_a_port_of_the_job(monkeypatch):
    found = []
    for rank in (0, 13):
        slurm(monkeypatch, rank)
        found.append(rendezvous.find())
    assert [f.rank for f in found] == [0, 13]
    assert [f.local_rank for f in found] == [0, 5]
    assert {(f.world_size, f.address, f.port) for f in found} == {(16, "a100-03", 24711)}


def test_a_site_says_by_which_name_nodes_reach_each_other(monkeypatch):
    slurm(monkeypatch, 13)
    monkeypatch.setenv(rendezvous.ADDRESS_VARIABLE, "{host}i")
    assert rendezvous.find().address == "a100-03i"
    monkeypatch.setenv(rendezvous.ADDRESS_VARIABLE, "{host}.fabric")
    with pytest.raises(ConfigError, match=r'a100-03.fabric: .*site file .*address: "{host}i"'):
        rendezvous.find()


def test_one_node_needs_no_name_resolution(monkeypatch):
    slurm(monkeypatch, 7, tasks=8, nodes=1)
    assert rendezvous.find().address == "127.0.0.1"


def test_an_array_task_has_its_own_job_id(monkeypatch):
    slurm(monkeypatch, 1, tasks=2, nodes=1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    assert rendezvous.find().port == rendezvous.FIRST_PORT + 4711
