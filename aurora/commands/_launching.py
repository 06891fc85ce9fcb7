"""`aurora train --nodes`: torchrun with the settings under which a lost process and a lost node are survived."""

import os
import re
import socket
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main as torchrun

from aurora.config import Config
from aurora.errors import AuroraError, LostProcess
from aurora.training.distributed.rendezvous import local_devices
from aurora.training.stage import plan_stages

PORT = 29500
LAST_CALL_SECONDS = 15  # that fewer nodes than the most wait for further ones
SAVE_SECONDS = 600  # that processes have for saving after SIGTERM


def launch(config: Config, overrides: Sequence[str], *, nodes: str, first: str | None, restarts: int) -> int:
    """Trains in `trainer.devices` processes here, together with those of the other nodes.

    The exit status is that of the first process that failed for good.
    """
    trainer = config.trainer
    processes = local_devices(trainer)
    fewest, most = _numbers(nodes)
    # what is wrong is said once, and not by every process at every restart
    plan_stages(config, worlds=[number * processes for number in range(fewest, most + 1)])
    # torchrun's agents would share a store with the processes, and with it what a killed one left there
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SAVE_SECONDS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = ["--nproc-per-node", str(processes), "--max-restarts", str(restarts),
               *_meeting(nodes, first, trainer.rendezvous_seconds),
               "-m", "aurora", "train", *overrides]
    before = os.times().children_user
    try:
        torchrun(command)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status
    except SignalException as error:
        return 128 + int(error.sigval)
    except RendezvousError as error:
        if os.times().children_user > before:  # processes have trained and ended
            raise LostProcess(f"the first node, {first}, where all meet, is gone ({error.__cause__ or error}). The "
                              "same command, started on all nodes, goes on at the last checkpoint") from error
        raise AuroraError(f"the nodes did not meet at --first-node {first} within "
                          f"{trainer.rendezvous_seconds:g} s (trainer.rendezvous_seconds). Are all started, is the "
                          "name known here, is the port free and does a firewall leave it open? "
                          f"({error.__cause__ or error or 'not all came'})") from error
    return 0


def _numbers(nodes: str) -> tuple[int, int]:
    """The fewest and the most nodes. AuroraError for a number that makes no sense."""
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", nodes):
        raise AuroraError(f"--nodes {nodes!r} is neither a number such as 2 nor a range such as 1:4")
    fewest, _, most = nodes.partition(":")
    if int(most or fewest) < int(fewest):
        raise AuroraError(f"--nodes {nodes}: the first number must not be above the second")
    return int(fewest), int(most or fewest)


def _meeting(nodes: str, first: str | None, seconds: float) -> list[str]:
    """torchrun's options for the rendezvous. AuroraError for an invalid name."""
    if nodes == "1":
        return ["--standalone"]
    if first is None:
        raise AuroraError(f"--nodes {nodes} needs --first-node HOST: the one where all meet")
    host, _, port = first.partition(":")
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise AuroraError(f"--first-node {first}: {port!r} is not a port from 1 to 65535; HOST:PORT is a name or an "
                          "IPv4 address and a number")
    address, ours, mine = _addresses(host)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(mine))
    conf = {"is_host": int(ours), "join_timeout": int(seconds), "read_timeout": int(seconds),
            "last_call_timeout": min(LAST_CALL_SECONDS, int(seconds))}
    return ["--nnodes", nodes, "--rdzv-backend", "c10d", "--rdzv-id", "aurora", "--local-addr", mine,
            "--rdzv-endpoint", f"{address}:{port or PORT}",
            "--rdzv-conf", ",".join(f"{key}={value}" for key, value in conf.items())]


def _addresses(host: str) -> tuple[str, bool, str]:
    """The address of a host, whether it is this machine, and this machine's address on the way there."""
    try:
        address = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            mine = probe.getsockname()[0]
    except OSError as error:
        raise AuroraError(f"--first-node {host}: {error}") from error
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return address, False, mine
    return address, True, address


def _interface(address: str) -> str:
    """The name of the network interface that has an address; gloo would take the one that the host's name leads to."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                # SIOCGIFADDR
                found = fcntl.ioctl(probe.fileno(), 0x8915, name.encode().ljust(256, b"\0"))
            except OSError:
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return ""
