"""The daemon and the inference server as services of systemd: units, checked and written, never enabled."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import durable
from config import Config, Paths
from errors import UsageError

Kind = Literal["user", "system"]
Program = Literal["daemon", "inference"]

CODE_FOLDER = Path(__file__).resolve().parent
TEMPLATES = CODE_FOLDER / "systemd"
DEFAULT_NAMES: dict[Program, str] = {"daemon": "trainbox", "inference": "trainbox-inference"}
SYSTEM_UNITS = Path("/etc/systemd/system")
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome= hides."""
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))
"""What PrivateTmp= replaces."""
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a service looks for programs beside vLLM's folder."""
UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and bytes that are not UTF-8."""
_PROBE = (
    "import os, sys; sys.exit(not all(os.access(path, os.R_OK | os.W_OK | os.X_OK) for path in sys.argv[1:]))"
)


@dataclass(frozen=True)
class Service:
    """One unit: the daemon, or the inference server, of one base folder, run by one account."""

    name: str
    kind: Kind
    paths: Paths
    config: Config
    account: pwd.struct_passwd
    python: Path
    hf_home: Path
    program: Program = "daemon"

    @classmethod
    def here(
        cls,
        kind: Kind,
        paths: Paths,
        config: Config,
        *,
        name: str | None = None,
        run_as: str | None = None,
        program: Program = "daemon",
    ) -> Service:
        """Describe the service of this checkout and this Python; UsageError when it must not run so."""
        name = DEFAULT_NAMES[program] if name is None else name
        if UNIT_NAME.fullmatch(name) is None:
            raise UsageError(f"--name: found {name!r}, expected letters, digits, '-' and '_'")
        account = _account(kind, paths.base, run_as)
        hf_home = os.environ.get("HF_HOME") or Path(account.pw_dir) / ".cache" / "huggingface"
        return cls(name, kind, paths, config, account, Path(sys.executable), Path(hf_home), program)

    @property
    def unit_file(self) -> Path:
        """Where systemd looks for the unit."""
        if self.kind == "system":
            return SYSTEM_UNITS / f"{self.name}.service"
        configuration = os.environ.get("XDG_CONFIG_HOME") or Path(self.account.pw_dir) / ".config"
        return Path(configuration) / "systemd" / "user" / f"{self.name}.service"

    def unit(self) -> str:
        """Fill in the template; UsageError for a path that a unit cannot hold."""
        values = {
            "BASE": _word(self.paths.base),
            # The colon keeps systemd from reading `$` in a path as a variable.
            "EXEC": " ".join(
                [
                    ":" + _word(self.python),
                    *("-X", "faulthandler", *self._module(), "--base"),
                    _word(self.paths.base),
                ]
            ),
            "USER": self.account.pw_name,
            "HF_HOME": _word(f"HF_HOME={self.hf_home}"),
            "PYTHONPATH": _word(f"PYTHONPATH={CODE_FOLDER}"),
            "WRITABLE": " ".join(_word(folder) for folder in self._writable()),
            "PROTECT_HOME": "read-only" if self._needs(HOMES) else "yes",
            "PRIVATE_TMP": "no" if self._needs(TEMPORARY) else "yes",
        }
        if self._is_vllm:
            values["VLLM_PATH"] = _word(f"PATH={self._vllm().parent}:{USUAL_PATH}")
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self._template())

    def install(self) -> Path:
        """Check the unit and write it where systemd looks; return its path. Nothing is started or enabled."""
        unit = self.unit()
        self._refuse_foreign(unit)
        if self.kind == "system" and os.geteuid() == 0:
            self._refuse_unreachable()
        verify(unit, self.name, self.kind)
        try:
            durable.make_folder(self.unit_file.parent)
            durable.write_bytes(self.unit_file, unit.encode())
        except PermissionError as error:
            remedy = "run it with sudo, or leave out --system for a service of your own"
            raise UsageError(f"{self.unit_file}: cannot write it: {error.strerror}; {remedy}") from error
        return self.unit_file

    def next_commands(self) -> list[str]:
        """Return what a person runs to start the service, now and at every boot."""
        if self.kind == "system":
            return ["sudo systemctl daemon-reload", f"sudo systemctl enable --now {self.name}"]
        return [
            "systemctl --user daemon-reload",
            f"systemctl --user enable --now {self.name}",
            "loginctl enable-linger",
        ]

    def _template(self) -> str:
        if self.program == "daemon":
            return (TEMPLATES / f"{self.kind}.service.in").read_text(encoding="utf-8")
        engine = (TEMPLATES / f"engine-{self.config.serving.engine}.in").read_text(encoding="utf-8")
        template = (TEMPLATES / f"inference-{self.kind}.service.in").read_text(encoding="utf-8")
        return template.replace("@ENGINE@\n", engine)

    @property
    def _is_vllm(self) -> bool:
        return self.program == "inference" and self.config.serving.engine == "vllm"

    def _vllm(self) -> Path:
        """Return where vLLM lies: a service does not search the folders that a shell does."""
        program = shutil.which("vllm")
        if program is None:
            raise UsageError(
                "serving.engine: found 'vllm' and no program of that name, expected it on the PATH where the "
                "unit is made; put its folder there (with sudo: sudo env PATH=$PATH …), or set "
                "serving.engine: transformers"
            )
        return Path(program).absolute()

    def _module(self) -> list[str]:
        """Return what of this checkout Python runs."""
        return [_word(CODE_FOLDER / "daemon.py")] if self.program == "daemon" else ["-m", "cli", "serve"]

    def _writable(self) -> list[Path]:
        """Return the base folder and whatever of it was moved elsewhere by a link."""
        base = self.paths.base
        moved = [path for path in self._written() if not path.is_relative_to(base)]
        temporary = TEMPORARY if self._needs(TEMPORARY) else ()
        return list(dict.fromkeys([base, *moved, *temporary]))

    def _written(self) -> Iterator[Path]:
        """Yield the base folder, and where the folders in it and the backups really lie."""
        base = self.paths.base
        yield base
        for name in ("inbox", "models", "status", "logs", self.config.backup.root):
            yield (base / name).resolve()

    def _needs(self, places: tuple[Path, ...]) -> bool:
        """Tell whether anything that the service reads or writes lies in one of `places`."""
        return any(path.is_relative_to(place) for path in self._needed() for place in places)

    def _needed(self) -> Iterator[Path]:
        cache = [self.hf_home] if os.path.exists(self.hf_home) else []
        program = (
            self.python,
            Path(sys.base_prefix),
            CODE_FOLDER,
            self.paths.base / self.config.model.base,
            *([self._vllm()] if self._is_vllm else []),
            *cache,
        )
        for path in (*program, *self._written()):
            yield path
            yield path.resolve()

    def _refuse_foreign(self, unit: str) -> None:
        """Raise UsageError when a unit of that name serves another base folder, or is none of ours."""
        if not self.unit_file.exists():
            return
        first, wanted = self.unit_file.read_text(encoding="utf-8").partition("\n")[0], unit.partition("\n")[0]
        if first != wanted:
            raise UsageError(
                f"{self.unit_file}: found a unit that begins with {first!r}, expected none or {wanted!r}; "
                "give this one another --name, or remove that one"
            )

    def _refuse_unreachable(self) -> None:
        """Raise UsageError when the account cannot run this Python or write to the base folder."""
        folders = [str(folder) for folder in self._writable()]
        remedy = f"let {self.account.pw_name} reach them, or name another account with --run-as"
        try:
            subprocess.run(
                [self.python, "-I", "-c", _PROBE, *folders],
                user=self.account.pw_uid,
                group=self.account.pw_gid,
                extra_groups=[],
                cwd="/",
                check=True,
                capture_output=True,
            )
        except PermissionError as error:
            raise UsageError(f"{self.python}: {self.account.pw_name} cannot run it; {remedy}") from error
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
            found = f"{self.account.pw_name} cannot read and write there {reason[0]}".strip()
            raise UsageError(f"{', '.join(folders)}: {found}; {remedy}") from error


def verify(unit: str, name: str, kind: Kind) -> None:
    """Have systemd-analyze check a unit; raise UsageError with its words about it.

    It returns 0 also for a misspelt key and only says so, and it speaks of other units as well.
    """
    if shutil.which("systemd-analyze") is None:
        raise UsageError("found no systemd-analyze, expected a machine that runs systemd; use: trainbox run")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.service"
        path.write_text(unit, encoding="utf-8")
        manager = ["--user"] if kind == "user" else []
        command = ["systemd-analyze", "verify", "--man=no", *manager, str(path)]
        environment = {"XDG_RUNTIME_DIR": folder, **os.environ}  # a shell by su or cron has none
        checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    complaints = [line for line in checked.stderr.splitlines() if path.name in line]
    if complaints or checked.returncode != 0:
        raise UsageError("systemd does not accept the unit: " + ("\n".join(complaints) or checked.stderr))


def _account(kind: Kind, base: Path, run_as: str | None) -> pwd.struct_passwd:
    """Return who runs the daemon: whoever asks, or in a system unit the base folder's owner, never root."""
    if kind == "user":
        if run_as is not None:
            raise UsageError("--run-as: only a system unit runs as somebody else; add --system")
        return pwd.getpwuid(os.geteuid())
    try:
        account = pwd.getpwnam(run_as) if run_as is not None else pwd.getpwuid(base.stat().st_uid)
    except KeyError as error:
        raise UsageError(
            f"{base}: found no account {error}; name one of this machine with --run-as"
        ) from error
    if account.pw_uid == 0:
        raise UsageError(
            f"{base}: found root as its owner, expected an account without privileges; "
            "`chown -R` it to one, or name one that can write there with --run-as"
        )
    return account


def _word(value: Path | str) -> str:
    """Write a path or an assignment as one word of a unit file."""
    text = str(value)
    if _UNWRITABLE.search(text) is not None:
        raise UsageError(f"{text!r}: a unit file cannot hold this path; rename the folder")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
