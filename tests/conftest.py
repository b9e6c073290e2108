"""What several test files share: the launcher, and the data that lies beside the repository."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: more threads than cores cost a factor of five
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # before huggingface_hub reads them

hypothesis.settings.register_profile("shared cores", deadline=None)  # a first example loads what the others have
hypothesis.settings.load_profile("shared cores")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
requires_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"{SHARED} is missing: these tests read its models and data sets"
)

LAUNCHER_MARKS = ("RANK", "WORLD_SIZE", "LOCAL_", "CROSS_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that one worker builds the small world while the other runs the rest."""
    items.sort(key=lambda item: item.path.name != "test_quickstart.py")


def free_port() -> int:
    """A port that nobody listens on, for a launcher's `--master_port`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_deepspeed(
    script_args: Sequence[str | Path],
    num_ranks: int = 2,
    timeout: float = 300,
    cwd: str | Path | None = None,
    env: Mapping[str, str | None] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs `deepspeed --num_gpus num_ranks script_args…` on the CPU; `stdout` holds both streams of all ranks.

    `env` adds to this process's environment; None removes a variable (`{"DS_ACCELERATOR": None}` gives a CUDA machine
    its devices back). The first run on a machine compiles an extension, a minute of the `timeout`. The test fails with
    the end of the output when time runs out, and when the status is not 0 unless `check` is False.
    """
    process = start_deepspeed(script_args, num_ranks, cwd, env)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{' '.join(process.args)} did not end within {timeout} s. Its output ended:\n{_tail(output)}")
    if check and process.returncode != 0:
        pytest.fail(f"{' '.join(process.args)} ended with {process.returncode}. Its output ended:\n{_tail(output)}")
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def start_deepspeed(
    script_args: Sequence[str | Path],
    num_ranks: int = 2,
    cwd: str | Path | None = None,
    env: Mapping[str, str | None] | None = None,
) -> subprocess.Popen[str]:
    """What `run_deepspeed` runs, just begun, in a session of its own as if in a terminal."""
    programs = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_MARKS)}
    environment["PATH"] = os.pathsep.join([str(programs), environment.get("PATH", os.defpath)])
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
    environment |= {"DS_ACCELERATOR": "cpu", **(env or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    words = [programs / "deepspeed", "--num_gpus", num_ranks, "--master_port", free_port(), *script_args]
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd or REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # launcher and ranks become one group, to be ended together
    )


def _tail(output: str, lines: int = 60) -> str:
    return "\n".join(output.splitlines()[-lines:])
