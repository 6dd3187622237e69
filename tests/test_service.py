"""The unit that is made for a checkout: what is in it, what is refused, and that nothing else is touched."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import service
from config import Paths, load_config
from errors import UsageError
from service import CODE_FOLDER, Kind, Service

NOBODY = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another account")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true",
    reason="systemd-analyze is not installed; run: make test-tools",
)


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the units of the person who runs the tests out of it."""
    folder = tmp_path / "configuration"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    monkeypatch.setattr(service, "SYSTEM_UNITS", tmp_path / "units")
    return folder


@pytest.fixture
def base() -> Iterator[Path]:
    """A base folder in a place that no unit hides."""
    with tempfile.TemporaryDirectory(dir="/var/lib" if os.geteuid() == 0 else None) as folder:
        yield Path(folder)


def make(
    base: Path, kind: Kind = "system", *, run_as: str | None = "nobody", name: str = "trainbox"
) -> Service:
    base.mkdir(exist_ok=True)
    return Service.here(kind, Paths(base), load_config(base), run_as=run_as, name=name)


def setting(unit: str, key: str) -> str:
    (line,) = [line for line in unit.splitlines() if line.startswith(f"{key}=")]
    return line.removeprefix(f"{key}=")


def trainbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "install-service", *arguments]
    return subprocess.run(command, cwd=CODE_FOLDER, capture_output=True, text=True, check=False)


def test_the_unit_starts_this_checkout_with_this_python_on_the_base_folder(base: Path) -> None:
    start = setting(make(base).unit(), "ExecStart")
    assert start == f':"{sys.executable}" -X faulthandler "{CODE_FOLDER}/daemon.py" --base "{base}"'


def test_the_unit_of_inference_starts_the_server_of_this_checkout(base: Path) -> None:
    paths = Paths(base)
    for kind, run_as in (("system", "nobody"), ("user", None)):
        made = Service.here(
            kind,  # type: ignore[arg-type]
            *(paths, load_config(base)),
            run_as=run_as,
            program="inference",
        )
        unit = made.unit()
        start = f':"{sys.executable}" -X faulthandler -m cli serve --base "{base}"'
        assert setting(unit, "ExecStart") == start
        assert f'"PYTHONPATH={CODE_FOLDER}"' in unit
        assert made.unit_file.name == "trainbox-inference.service"
        assert "@" not in unit.replace("@system-service", "").replace("@privileged", "").replace(
            "@resources", ""
        )


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_unit_of_inference(base: Path, configuration: Path) -> None:
    shown = trainbox("--base", str(base), "--inference")
    assert shown.returncode == 0, shown.stderr
    assert "systemctl --user enable --now trainbox-inference" in shown.stdout
    unit = configuration / "systemd" / "user" / "trainbox-inference.service"
    assert setting(unit.read_text(encoding="utf-8"), "Type") == "notify"
    service.verify(
        Service.here("system", Paths(base), load_config(base), run_as="daemon", program="inference").unit(),
        *("trainbox-inference", "system"),
    )


@pytest.mark.config_key("serving.engine")
def test_a_unit_for_vllm_waits_for_no_word_that_vllm_never_says(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(base)
    config = load_config(base, ["serving.engine=vllm"])
    units = [
        Service.here("system", paths, config, run_as="daemon", program="inference"),
        Service.here("user", paths, config, program="inference"),
    ]
    monkeypatch.setenv("PATH", "/nowhere")
    for made in units:
        with pytest.raises(UsageError, match=r"serving\.engine: found 'vllm'.*PATH"):
            made.unit()
    (tmp_path / "vllm").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}:/usr/bin")
    for made in units:
        unit = made.unit()
        assert setting(unit, "Type") == "exec"
        assert not any(word in unit for word in ("WatchdogSec", "NotifyAccess", "@ENGINE@", "@VLLM_PATH@"))
        assert f'Environment="PATH={tmp_path}:/usr' in unit
        if shutil.which("systemd-analyze") is not None:
            service.verify(unit, "trainbox-inference", made.kind)
    assert setting(Service.here("user", paths, config).unit(), "Type") == "notify"


def test_what_a_unit_file_would_interpret_is_escaped(base: Path) -> None:
    unit = make(base / """100% of "a" \\ b""").unit()
    # A checkout that lies in a temporary folder needs that one writable, too.
    assert setting(unit, "ReadWritePaths").startswith(f'"{base}/100%% of \\"a\\" \\\\ b"')


@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"latin-\xe9")])
def test_a_path_that_no_unit_can_hold_is_refused(base: Path, name: str) -> None:
    with pytest.raises(UsageError, match="rename the folder"):
        make(base / name).unit()


def test_homes_and_temporary_folders_are_hidden_unless_something_needed_lies_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HOMES", (tmp_path / "home",))
    monkeypatch.setattr(service, "TEMPORARY", (tmp_path / "tmp",))
    hidden = make(base).unit()
    assert (setting(hidden, "ProtectHome"), setting(hidden, "PrivateTmp")) == ("yes", "yes")
    (tmp_path / "home").mkdir()
    at_home = make(tmp_path / "home" / "box").unit()
    assert (setting(at_home, "ProtectHome"), setting(at_home, "PrivateTmp")) == ("read-only", "yes")
    (tmp_path / "tmp").mkdir()
    passing = make(tmp_path / "tmp" / "box").unit()
    assert (setting(passing, "ProtectHome"), setting(passing, "PrivateTmp")) == ("yes", "no")
    assert setting(passing, "ReadWritePaths") == f'"{tmp_path}/tmp/box" "{tmp_path}/tmp"'


def test_a_cache_of_models_in_a_home_is_left_readable(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HOMES", (tmp_path,))
    (tmp_path / "no cache").mkdir()
    unit = make(base).unit()
    assert setting(unit, "ProtectHome") == "read-only"
    assert f'"HF_HOME={tmp_path}/no cache"' in unit


@pytest.mark.config_key("backup.root", "model.base")
def test_folders_that_lie_elsewhere_are_reached(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (base / "models").symlink_to(tmp_path / "disk")
    (base / "config.yaml").write_text(
        f"backup:\n  root: {tmp_path}/backups\nmodel:\n  base: {tmp_path}/base\n"
    )
    monkeypatch.setattr(service, "TEMPORARY", ())
    monkeypatch.setattr(service, "HOMES", (tmp_path / "base",))
    unit = make(base).unit()
    assert setting(unit, "ReadWritePaths") == f'"{base}" "{tmp_path}/disk" "{tmp_path}/backups"'
    assert setting(unit, "RequiresMountsFor") == setting(unit, "ReadWritePaths")
    assert setting(unit, "ProtectHome") == "read-only"


@needs_root
def test_a_system_unit_runs_as_the_owner_of_the_base_folder_and_never_as_root(base: Path) -> None:
    with pytest.raises(UsageError, match="found root as its owner"):
        make(base, run_as=None)
    os.chown(base, NOBODY.pw_uid, NOBODY.pw_gid)
    assert setting(make(base, run_as=None).unit(), "User") == "nobody"


def test_what_to_run_next_is_told_for_each_kind(base: Path) -> None:
    assert make(base, name="box").next_commands()[-1] == "sudo systemctl enable --now box"
    assert make(base, "user", run_as=None).next_commands()[-1] == "loginctl enable-linger"


def test_only_a_system_unit_runs_as_somebody_else(base: Path) -> None:
    with pytest.raises(UsageError, match="add --system"):
        make(base, "user", run_as="nobody")


def test_an_account_that_is_not_there_is_refused(base: Path) -> None:
    with pytest.raises(UsageError, match="nobody-at-all"):
        make(base, run_as="nobody-at-all")


@pytest.mark.parametrize("name", ["a b", "../trainbox", "", "a@b"])
def test_a_name_that_is_no_unit_name_is_refused(base: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        make(base, name=name)


@needs_root
def test_an_account_that_cannot_write_to_the_base_folder_is_refused(base: Path) -> None:
    with pytest.raises(UsageError, match="nobody cannot"):
        make(base).install()
    assert not (service.SYSTEM_UNITS).exists()


@needs_systemd
def test_a_unit_is_written_again_but_never_over_that_of_another_base_folder(
    base: Path, configuration: Path
) -> None:
    first = make(base / "one", "user", run_as=None)
    assert first.install() == first.install() == configuration / "systemd" / "user" / "trainbox.service"
    with pytest.raises(UsageError, match="give this one another --name"):
        make(base / "two", "user", run_as=None).install()
    make(base / "two", "user", run_as=None, name="second").install()
    assert first.unit_file.read_text(encoding="utf-8") == first.unit()


@needs_systemd
def test_a_unit_that_systemd_does_not_understand_is_refused_with_its_words() -> None:
    with pytest.raises(UsageError, match="WatchdogSeconds"):
        service.verify("[Service]\nExecStart=/bin/true\nWatchdogSeconds=3\n", "trainbox", "system")
    with pytest.raises(UsageError, match="ExecStart"):
        service.verify("[Service]\nType=notify\n", "trainbox", "user")


def test_a_dry_run_prints_the_unit_and_writes_nothing(base: Path, configuration: Path) -> None:
    shown = trainbox("--base", str(base), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == make(base, "user", run_as=None).unit()
    assert not configuration.exists()


def test_a_base_folder_with_a_wrong_configuration_gets_no_unit(base: Path, configuration: Path) -> None:
    (base / "config.yaml").write_text("trian:\n  seed: 1\n")
    refused = trainbox("--base", str(base))
    assert refused.returncode == 2
    assert "did you mean" in " ".join(refused.stderr.split())
    assert not configuration.exists()
