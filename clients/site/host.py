"""The process that keeps a site's workers: ``python -m fedcurv.clients.site.host FOLDER SETTINGS``.

It passes jobs on and never looks into them.
"""

import json
import multiprocessing
import os
import pickle
import secrets
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

from fedcurv.clients.site.pool import ADDRESS_FILE, START_S, Place, require_private, store_of_job
from fedcurv.lasgd.control import Control
from fedcurv.lasgd.hosting import host_store

# of a worker: what its job returned, pickled, and what went wrong
_Answer = tuple[bytes, str | None]


@dataclass
class _Worker:
    process: Any
    connection: Connection


def _work(connection: Connection) -> None:
    """Do jobs until the host is gone."""
    connection.send_bytes(b"ready")
    while True:
        try:
            place, work = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            job, arguments = pickle.loads(work)
            answer: _Answer = (pickle.dumps(job(place, *arguments)), None)
        except Exception:
            answer = (b"", traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))


class Host:
    """Workers, one for each device, replaced when they end.

    Args:
        devices: for torch.
        patience_s: for workers that are silent after another has answered.
    """

    def __init__(self, devices: list[str], patience_s: float) -> None:
        self._devices, self._patience_s = devices, patience_s
        self._context = multiprocessing.get_context("spawn")
        self._server = host_store()
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        self._workers: list[_Worker | None] = [None] * len(devices)
        self._jobs = 0

    def run(self, work: bytes) -> list[_Answer]:
        """Return every worker's answer to a job."""
        self._jobs += 1
        workers = self._all_ready()
        for rank, worker in enumerate(workers):
            size, port = len(workers), self._server.port
            place = Place(rank, size, self._devices[rank], port, self._jobs)
            worker.connection.send_bytes(pickle.dumps((place, work)))
        answers: dict[int, _Answer] = {}
        deadline = None
        while waiting := [rank for rank in range(len(workers)) if rank not in answers]:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait([workers[rank].connection for rank in waiting], left)
            if not ready:
                for rank in waiting:
                    answers[rank] = self._end(rank, f"no answer for {self._patience_s:g} s")
            for rank in waiting:
                if workers[rank].connection in ready:
                    answers[rank] = self._answer(rank, workers[rank])
            if any(error is None for _, error in answers.values()) and deadline is None:
                deadline = time.monotonic() + self._patience_s
        return [answers[rank] for rank in range(len(workers))]

    def _all_ready(self) -> list[_Worker]:
        new = [rank for rank, worker in enumerate(self._workers) if worker is None]
        workers = [worker or self._start() for worker in self._workers]
        self._workers = list(workers)
        for rank in new:
            # a job's patience is not for what a process needs to begin
            if workers[rank].connection.poll(START_S):
                workers[rank].connection.recv_bytes()
        return workers

    def end(self) -> None:
        """End all workers."""
        for rank, worker in enumerate(self._workers):
            if worker is not None:
                self._end(rank, "closed")

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there,), daemon=False)
        process.start()
        there.close()
        return _Worker(process, here)

    def _answer(self, rank: int, worker: _Worker) -> _Answer:
        try:
            answer: _Answer = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, ConnectionError):
            worker.process.join(5)
            # so that the others do not wait for it
            store: Any = store_of_job(self._server, self._jobs)
            Control(store, rank, self._patience_s).flag_dead(rank)
            return self._end(rank, f"the process has ended, exit code {worker.process.exitcode}")
        return answer

    def _end(self, rank: int, why: str) -> _Answer:
        worker, self._workers[rank] = self._workers[rank], None
        if worker is not None:
            worker.connection.close()
            worker.process.kill()
            worker.process.join()
        return b"", why


def main() -> None:
    """Serve until told to end, or idle for too long."""
    os.umask(0o077)
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    require_private(folder)
    key, host = secrets.token_bytes(32), Host(settings["devices"], settings["patience_s"])
    with Listener(("127.0.0.1", 0), authkey=key) as listener:
        address = {"port": listener.address[1], "key": key.hex(), "pid": os.getpid()}
        file = folder / ADDRESS_FILE
        temporary = file.with_suffix(".part")
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({**address, "devices": settings["devices"]}))
        temporary.rename(file)
        try:
            while _serve(listener, host, key, settings["idle_s"]):
                pass
        finally:
            file.unlink(missing_ok=True)
            host.end()


def _serve(listener: Listener, host: Host, key: bytes, idle_s: float) -> bool:
    """Answer one request; return whether to go on."""
    timer = threading.Timer(idle_s, _say_end, (listener.address, key))
    timer.daemon = True
    timer.start()
    try:
        connection = listener.accept()
    except (OSError, EOFError, multiprocessing.AuthenticationError):
        return True  # a stranger
    finally:
        timer.cancel()
    with connection:
        try:
            request = connection.recv_bytes()
            if request == b"end":
                return False
            connection.send_bytes(pickle.dumps(host.run(request.removeprefix(b"run"))))
        except (EOFError, ConnectionError):
            pass  # who asked is gone
    return True


def _say_end(address: Any, key: bytes) -> None:
    with Client(address, authkey=key) as connection:
        connection.send_bytes(b"end")


if __name__ == "__main__":
    main()
