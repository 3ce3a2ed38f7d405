"""`flwr run`, watched: a run that has failed is an error with the reason in one line."""

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from fedcurv.simulations.console.programs import end_all, found_program

APP = Path(__file__).parents[1] / "app"
PRIVATE = 0o077  # umask of what Flower's programs write: keys, databases, logs

_COMPLETED = "finished:completed"
_LONGEST_REASON = 600
_ANSWER_S = 120
_EXCEPTION = re.compile(r"[\w.]+(Error|Failed|Exception)(: |$)")
_ROUND_FAILED = re.compile(r"[\w.]*(RoundFailed: .*); the first said:$")


class RunFailed(RuntimeError):
    """A run did not end well."""


def run_app(
    app: Path,
    superlink: str,
    run_config: str,
    *,
    environment: Mapping[str, str],
    timeout_s: float | None = None,
    echo: Callable[[str], object] = lambda line: None,
) -> None:
    """Run a Flower app to its end.

    Args:
        app: its folder.
        superlink: a connection's name in Flower's configuration.
        run_config: as ``flwr run`` takes it.
        environment: of the processes.
        timeout_s: after which the run counts as failed; it is stopped then.
        echo: gets every line of the run's log.

    Raises:
        RunFailed: if it has failed, with the reason in one line: ``flwr run`` ends with 0 all the
            same.
    """
    command = [
        found_program("flwr", environment),
        "run",
        str(app),
        superlink,
        "--stream",
        "--run-config",
        run_config,
    ]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=PRIVATE,
        start_new_session=True,
    ) as process:
        end = threading.Timer(
            threading.TIMEOUT_MAX if timeout_s is None else timeout_s, end_all, [[process]]
        )
        end.daemon = True
        end.start()
        assert process.stdout is not None  # as asked for
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                echo(lines[-1])
            is_late = not end.is_alive()
        finally:
            end.cancel()
            end_all([process])
    run_id = _run_id(lines)
    if is_late:
        if run_id is not None:
            ask_flwr("stop", run_id, superlink, environment=environment)
        raise RunFailed(f"the run did not end within {timeout_s:g} s")
    if run_id is None:
        raise RunFailed(f"{reason_in(lines)} (the run did not start)")
    status = _status(superlink, run_id, environment)
    if status != _COMPLETED:
        raise RunFailed(f"{reason_in(lines)} (the run has failed: {status})")


def reason_in(log: list[str]) -> str:
    """Return why a run failed, in one line: the cause, and after it the round that it ended.

    The cause is the last exception that the log's last exception tells of, itself or a client's.
    """
    begins = [index for index, line in enumerate(log) if _EXCEPTION.match(line)]
    if not begins:
        return _shortened(log[-10:])
    end = next((i for i in range(begins[-1], len(log)) if log[i].startswith("\x1b")), len(log))
    last = [i for i in range(begins[-1], end) if _EXCEPTION.match(log[i].strip())][-1]
    kind, colon, text = log[last].strip().partition(": ")
    reason = _shortened([f"{kind.rpartition('.')[2]}{colon}{text}", *log[last + 1 : end]])
    rounds = [told for line in log[:last] if (told := _ROUND_FAILED.match(line))]
    return f"{reason} ({rounds[-1].group(1)})" if rounds else reason


def _shortened(lines: list[str]) -> str:
    without_boxes = re.sub("[\u2500-\u257f]", " ", " ".join(lines))
    text = " ".join(without_boxes.split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _run_id(log: list[str]) -> str | None:
    for line in log:
        if started := re.search(r"Successfully started run (\d+)", line):
            return started.group(1)
    return None


def _status(superlink: str, run_id: str, environment: Mapping[str, str]) -> str:
    arguments = ("list", superlink, "--run-id", run_id, "--format", "json")
    listed = ask_flwr(*arguments, environment=environment).stdout
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        return str(json.loads(listed)["runs"][0]["status"])
    return f"unknown: {_shortened(listed.splitlines()[-10:])}"


def ask_flwr(*arguments: str, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run ``flwr`` with these arguments, and return what it printed.

    Raises:
        RunFailed: if it does not end.
    """
    try:
        return subprocess.run(
            [found_program("flwr", environment), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_ANSWER_S,
            check=False,
            umask=PRIVATE,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"flwr {arguments[0]} did not end within {_ANSWER_S} s") from error


def run_config_of(overrides: str, output: str, *, resume: bool, checkpoint_every: int) -> str:
    """Return the settings of this project's app, as ``flwr run`` takes them."""
    settings = [
        f"overrides={_quoted(overrides)}",
        f"output={_quoted(output)}",
        f"resume={str(resume).lower()}",
        f"checkpoint-every={checkpoint_every}",
    ]
    return " ".join(settings)


def _quoted(text: str) -> str:
    """Return a text as TOML's, without quotation marks within: Flower cuts at the first of them."""
    return '"' + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022") + '"'
