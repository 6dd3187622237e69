"""The system units under a real systemd: what they start, saves, restarts, gives up, forbids and allows."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config import load_config
from tests.serving.published import publish
from tests.systemd.machine import CODE, PYTHON, SHARED, TRAINER, Unit
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.model import load_generator

LONG = {"steps": 100_000, "step_seconds": 0.01}
QUICKLY = "RestartSec=100ms"


def test_start_returns_when_the_daemon_is_ready_and_its_status_is_shown(unit: Unit) -> None:
    unit.start()
    assert unit.paths.status_file.exists()
    assert unit.property("ActiveState") == "active"
    wait_until(lambda: unit.property("StatusText") == "idle")
    unit.drop(**LONG)
    wait_until(lambda: unit.property("StatusText") == "training a.jsonl")
    assert "training a.jsonl" in unit.systemctl("status", unit.name).stdout


def test_stop_in_training_saves_and_the_next_start_goes_on_from_the_exact_step(unit: Unit) -> None:
    unit.drop(steps=60, hold_at=(20,))
    unit.start()
    wait_until(lambda: unit.is_at_step(5))
    unit.stop()
    assert (unit.property("ActiveState"), unit.property("Result")) == ("inactive", "success")
    assert unit.worker() is None
    step = unit.job().step
    assert step is not None and unit.steps() == list(range(1, step + 1))
    unit.let_go(20)
    unit.systemctl("start", unit.name)
    wait_until(unit.is_done)
    assert unit.steps() == list(range(1, 61))
    assert unit.job().outcome == "completed"


def test_a_killed_daemon_takes_its_worker_along_is_restarted_and_goes_on(unit: Unit) -> None:
    unit.drop(steps=200, checkpoint_every=10, hold_at=(15,))
    unit.start(QUICKLY)
    wait_until(lambda: unit.is_at_step(12))
    worker = unit.worker()
    assert worker is not None
    unit.signal_main("KILL")
    wait_until(lambda: unit.property("NRestarts") == "1")
    assert not unit.has_process(worker)
    unit.let_go(15)
    wait_until(unit.is_done)
    steps = unit.steps()
    assert (steps[0], steps[-1], steps.count(1)) == (1, 200, 1)
    assert unit.job().outcome == "completed"


def test_a_hung_daemon_is_ended_by_the_watchdog_says_where_it_hung_and_is_restarted(unit: Unit) -> None:
    unit.drop(steps=300, checkpoint_every=20, hold_at=(30,))
    unit.start(QUICKLY, "WatchdogSec=10s")
    wait_until(lambda: unit.is_at_step(25))
    unit.signal_main("STOP")
    wait_until(lambda: unit.property("NRestarts") == "1")
    wait_until(lambda: "Fatal Python error: Aborted" in unit.journal())
    journal = unit.journal()
    assert "Watchdog timeout" in journal and "daemon.py" in journal
    unit.let_go(30)
    wait_until(unit.is_done)
    assert unit.steps().count(1) == 1
    assert unit.property("NRestarts") == "1"


def test_a_daemon_with_nothing_to_do_keeps_the_watchdog_quiet(unit: Unit) -> None:
    (unit.paths.config_file).write_text("inbox:\n  poll_seconds: 60\n", encoding="utf-8")
    unit.start("WatchdogSec=8s", has_stub=False)
    pings = "WatchdogTimestampMonotonic"
    seen = [int(unit.property(pings))]
    while len(seen) < 5:
        wait_until(lambda: int(unit.property(pings)) > seen[-1])
        seen.append(int(unit.property(pings)))
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) < 8_000_000
    assert (unit.property("ActiveState"), unit.property("NRestarts")) == ("active", "0")


def test_a_stop_by_control_file_is_not_restarted(unit: Unit) -> None:
    unit.start(QUICKLY)
    unit.command("stop")
    wait_until(lambda: unit.property("ActiveState") == "inactive")
    states = [unit.property(name) for name in ("SubState", "Result", "NRestarts")]
    assert states == ["dead", "success", "0"]  # one that waits for its restart would be activating


def test_a_wrong_configuration_fails_at_once_and_is_not_restarted(unit: Unit) -> None:
    unit.paths.config_file.write_text("trian:\n  seed: 1\n", encoding="utf-8")
    unit.change(QUICKLY, has_stub=False)
    assert unit.systemctl("start", unit.name, check=False).returncode != 0
    states = [unit.property(name) for name in ("ActiveState", "SubState", "ExecMainStatus", "NRestarts")]
    assert states == ["failed", "failed", "2", "0"]
    assert "did you mean" in unit.journal()


def test_a_daemon_that_dies_again_and_again_is_given_up(unit: Unit) -> None:
    unit.change("RestartSec=10ms", "ExecStart=", "ExecStart=/bin/false", has_stub=False)
    unit.systemctl("start", unit.name, check=False)
    wait_until(lambda: unit.property("ActiveState") == "failed")
    assert unit.property("NRestarts") == "5"
    assert "Start request repeated too quickly" in unit.journal()


def test_a_stop_waits_for_a_checkpoint_that_takes_longer_than_its_time(unit: Unit) -> None:
    unit.drop(**LONG, save_seconds=9)
    unit.start("TimeoutStopSec=6s")
    wait_until(lambda: unit.is_at_step(3))
    unit.stop()
    assert (unit.property("ActiveState"), unit.property("Result")) == ("inactive", "success")
    step = unit.job().step
    assert step is not None and step >= 3
    assert unit.paths.run(unit.job().job_id).checkpoint(step).is_dir()


def test_the_hardened_service_reaches_gpus_and_its_base_folder_and_nothing_else(unit: Unit) -> None:
    probe = unit.paths.base.parent / "probe.py"
    probe.write_text(PROBE, encoding="utf-8")
    answer = unit.paths.base / "answer.json"
    unit.start(f"ExecStartPre={PYTHON} {SHARED / unit.name / 'probe.py'}")
    assert json.loads(answer.read_text(encoding="utf-8")) == {
        "read a GPU's device": "ok",
        "write to the cache": "ok",
        "make a process": "ok",
        "write to /usr": "Read-only file system",
        "write to the home folder": "Read-only file system",
        "write to the checkout": "Read-only file system",
        "capture packets": "Address family not supported by protocol",
        "mount": "Operation not permitted",
        "see processes of others": "No such file or directory",
    }
    assert answer.stat().st_uid == TRAINER


def test_the_hardened_service_serves_this_machine_and_takes_its_token_from_systemd(unit: Unit) -> None:
    token = "t" * 32
    (unit.paths.base.parent / "token").write_text(token, encoding="utf-8")
    credential = f"LoadCredential=trainbox-token:{SHARED / unit.name / 'token'}"
    unit.start("Environment=TRAINBOX_SERVING__MONITOR_PORT=0", credential)
    wait_until(unit.paths.monitor_address.exists)
    url = json.loads(unit.paths.monitor_address.read_text(encoding="utf-8"))["url"]
    assert unit.run(str(PYTHON), "-c", ASK, f"{url}/health", token).stdout.split() == ["401", "200"]


ASK = """
import sys, urllib.error, urllib.request

url, token = sys.argv[1:]
for headers in ({}, {"Authorization": f"Bearer {token}"}):
    try:
        print(urllib.request.urlopen(urllib.request.Request(url, headers=headers)).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
PROBE = """
import ctypes, glob, json, os, socket, subprocess, sys
from pathlib import Path

def attempt(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return "ok"

def mount():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"x", b"/mnt", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

(base,) = glob.glob(os.path.dirname(__file__) + "/base*")
Path(base, "answer.json").write_text(json.dumps({
    "read a GPU's device": attempt(lambda: open("/dev/nvidia0", "rb").read(1)),
    "write to the cache": attempt(Path(os.environ["CACHE_DIRECTORY"], "x").touch),
    "make a process": attempt(lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
    "write to /usr": attempt(Path("/usr/x").touch),
    "write to the home folder": attempt(Path("/home/trainer/x").touch),
    "write to the checkout": attempt(Path("/opt/trainbox/x").touch),
    "capture packets": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "mount": attempt(mount),
    "see processes of others": attempt(lambda: os.stat("/proc/1/status")),
}))
"""


def test_systemd_has_nothing_to_say_about_the_unit_and_its_drop_ins(unit: Unit) -> None:
    drop_ins = f"{unit.file}.d"
    unit.run("mkdir", drop_ins)
    unit.run("sh", "-c", f"cp {CODE}/systemd/drop-ins/*.conf {drop_ins}/")
    verified = unit.run("systemd-analyze", "verify", "--man=no", unit.file)
    assert (verified.stdout, verified.stderr) == ("", "")
    assert len(unit.run("ls", drop_ins).stdout.split()) == 4


def test_the_exposure_is_small_and_no_device_is_hidden(unit: Unit) -> None:
    checked = unit.run("systemd-analyze", "security", "--offline=true", "--threshold=15", unit.file)
    exposure = re.search(r"Overall exposure level .*: ([\d.]+)", checked.stdout)
    assert exposure is not None and float(exposure[1]) <= 1.5
    assert re.search(r"^(PrivateDevices|DeviceAllow|DevicePolicy)=", unit.text, re.MULTILINE) is None


@pytest.mark.real_model
def test_the_real_worker_trains_under_the_hardened_unit(
    unit: Unit, tiny_model: Path, make_chats: Callable[..., list[dict[str, Any]]]
) -> None:
    shutil.copytree(tiny_model, unit.paths.base / "tiny")
    settings = "model:\n  base: tiny\n  precision: float32\ninbox:\n  settle_seconds: 0.2\n"
    unit.paths.config_file.write_text(settings, encoding="utf-8")
    lines = [json.dumps(record) + "\n" for record in make_chats(30)]
    (unit.paths.inbox / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    unit.give(unit.paths.base)
    unit.start(has_stub=False)
    wait_until(lambda: unit.is_done() or unit.is_failed(), seconds=2 * PATIENCE_SECONDS)
    assert (unit.job().outcome, unit.job().version) == ("completed", "v0001"), unit.journal()
    assert (unit.paths.current / "adapter_model.safetensors").stat().st_uid == TRAINER


@pytest.mark.real_model
def test_the_inference_server_answers_comes_back_when_it_is_killed_and_ends_cleanly(
    inference_unit: Unit, tiny_model: Path
) -> None:
    unit = inference_unit
    model = unit.paths.base / "tiny"
    shutil.copytree(tiny_model, model)
    unit.paths.config_file.write_text("model:\n  base: tiny\n  precision: float32\n", encoding="utf-8")
    publish(unit.paths, model, 1)
    unit.give(unit.paths.base)
    config = load_config(unit.paths.base)
    (known,) = load_generator(unit.paths, config, "current").generate([QUESTION], max_new_tokens=8)

    unit.start(QUICKLY, has_stub=False)
    assert answered(unit) == ["ok", "v0001", known.text]
    assert unit.property("StatusText") == "answering at http://127.0.0.1:9000"
    first = int(unit.property("MainPID"))
    unit.signal_main("KILL")
    wait_until(lambda: unit.property("NRestarts") == "1" and unit.property("ActiveState") == "active")
    second = int(unit.property("MainPID"))
    assert second != first and not unit.has_process(first)
    assert answered(unit) == ["ok", "v0001", known.text]

    unit.stop()
    states = [unit.property(name) for name in ("ActiveState", "SubState", "Result", "ExecMainStatus")]
    assert states == ["inactive", "dead", "success", "0"]
    assert not unit.has_process(second) and unit.processes() == []
    assert not unit.paths.inference_address.exists()


@pytest.mark.real_model
def test_an_inference_server_with_a_wrong_configuration_fails_at_once_and_is_not_restarted(
    inference_unit: Unit,
) -> None:
    inference_unit.paths.config_file.write_text("serving:\n  max_bach: 1\n", encoding="utf-8")
    inference_unit.change(QUICKLY, has_stub=False)
    assert inference_unit.systemctl("start", inference_unit.name, check=False).returncode != 0
    names = ("ActiveState", "SubState", "ExecMainStatus", "NRestarts")
    assert [inference_unit.property(name) for name in names] == ["failed", "failed", "2", "0"]
    assert "did you mean" in inference_unit.journal()


VLLM = f"""#!{PYTHON}
import http.server, sys

class Empty(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Empty).serve_forever()
"""
FIND = """
import sys
from pathlib import Path
from config import Paths, load_config
from serving.client import find_server

found = find_server(Paths(Path(sys.argv[1])), load_config(Path(sys.argv[1])))
print(None if found is None else found.url)
"""


@pytest.mark.real_model
def test_a_unit_for_vllm_is_started_by_systemd_and_found_by_its_clients(
    inference_unit: Unit, tiny_model: Path
) -> None:
    """A program of that name stands in for it, in a folder that no service searches, and says no READY."""
    unit = inference_unit
    shutil.copytree(tiny_model, unit.paths.base / "tiny")
    unit.paths.config_file.write_text("model:\n  base: tiny\nserving:\n  engine: vllm\n", encoding="utf-8")
    program = unit.paths.base.parent / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(VLLM, encoding="utf-8")
    program.chmod(0o755)
    unit.give(unit.paths.base.parent)
    python = ("env", f"PATH={unit.inside.parent}/bin:/usr/bin:/bin", f"PYTHONPATH={CODE}", str(PYTHON))
    made = ("install-service", "--inference", "--system", "--name", unit.name, "--base", str(unit.inside))
    unit.run(*python, "-m", "cli", *made)

    unit.start(QUICKLY, has_stub=False)
    url = "http://127.0.0.1:9000"
    wait_until(lambda: unit.run(*python, "-c", FIND, str(unit.inside)).stdout.strip() == url)
    states = [unit.property(name) for name in ("Type", "ActiveState", "NRestarts", "WatchdogUSec")]
    assert states == ["exec", "active", "0", "0"]
    unit.stop()
    assert unit.processes() == []


QUESTION = [{"role": "user", "content": "what colour is the rain"}]
CHAT = """
import json, sys, urllib.request

def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:9000{path}", data, headers)
    return json.load(urllib.request.urlopen(request))

question = {"model": "current", "messages": json.loads(sys.argv[1]), "max_tokens": 8}
said = ask("/v1/chat/completions", question)
print(json.dumps([ask("/health")["status"], said["model"], said["choices"][0]["message"]["content"]]))
"""


def answered(unit: Unit) -> list[str]:
    """Return how the server is, which model answers the question, and the answer, as seen from inside."""
    said: list[str] = json.loads(unit.run(str(PYTHON), "-c", CHAT, json.dumps(QUESTION)).stdout)
    return said
