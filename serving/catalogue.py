"""Which models can be asked for, what each one is made of, and that its bytes are what was published."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import durable
from chat_template import ChatTemplate
from config import ModelConfig, Paths
from errors import IntegrityError
from training.base_model import base_sha256
from training.full_models import base_under
from training.versions import Version, VersionStore

BASE = "base"
CURRENT = "current"


@dataclass(frozen=True)
class BaseModel:
    """A base that versions stand on."""

    folder: Path
    sha256: str
    template: ChatTemplate
    window_tokens: int | None
    """Prompt and answer together are no longer than this; None: the model does not say."""


@dataclass(frozen=True)
class ServedModel:
    """What answers: a base, and the adapter of a version on it."""

    name: str
    """``base``, or the name of a version."""
    base: BaseModel
    adapter: Path | None = None
    key: str = ""
    """Hash of the version's manifest: a version is what its manifest says, not what its folder is called."""


class Catalogue:
    """The models of a base folder; safe to be asked by several threads."""

    def __init__(self, paths: Paths, config: ModelConfig) -> None:
        self._paths = paths
        self._config = config
        self._store = VersionStore(paths)
        self._lock = threading.Lock()
        self._bases: dict[str | None, BaseModel] = {}
        self._verified: dict[tuple[str, str], ServedModel] = {}

    def names(self) -> Sequence[str]:
        """Return every name that `find` knows."""
        return [BASE, CURRENT, *(version.name for version in self._store.list())]

    def pointer(self) -> str:
        """Return where `current` points, unread: whether it has moved since."""
        try:
            return os.readlink(self._paths.current)
        except FileNotFoundError:
            return BASE

    def is_on(self, base: BaseModel) -> bool:
        """Tell whether `current` stands on this base; neither is looked through for that."""
        version = self._store.current()
        return base is self._bases.get(None if version is None else version.facts.consolidated)

    def find(self, name: str) -> ServedModel:
        """Return the model of that name: ``base``, ``current`` or a version.

        Each byte of a version, and of a sealed base, is checked when it is first asked for. Raises UsageError
        when there is no such model, IntegrityError when it is damaged, ConfigError when its base is missing.
        """
        if name == BASE:
            return self._plain_base()
        version = self._store.current() if name == CURRENT else self._store.get(name)
        return self._plain_base() if version is None else self._version(version)

    def _plain_base(self) -> ServedModel:
        known = self._bases.get(None)
        if known is not None:
            return ServedModel(BASE, known)
        with self._lock:
            return ServedModel(BASE, self._base(None))

    def _version(self, version: Version) -> ServedModel:
        key = (version.name, version.manifest_sha256)
        known = self._verified.get(key)
        if known is not None:  # also while the lock is held to look through a large base
            return known
        with self._lock:
            if key not in self._verified:
                self._store.verify(version)
                base = self._base(version)
                if version.facts.base_sha256 != base.sha256:
                    raise IntegrityError(
                        f"{version.name} was trained on other base weights than those in {base.folder}; set "
                        f"model.base to {version.facts.base_model!r}"
                    )
                self._verified[key] = ServedModel(version.name, base, version.folder, version.manifest_sha256)
            return self._verified[key]

    def _base(self, version: Version | None) -> BaseModel:
        consolidated = None if version is None else version.facts.consolidated
        if consolidated not in self._bases:
            folder = base_under(self._paths, self._config, None if version is None else version.facts)
            template = ChatTemplate.load(folder, self._config.chat_template_kwargs)
            self._bases[consolidated] = BaseModel(folder, base_sha256(folder), template, _window(folder))
        return self._bases[consolidated]


def _window(folder: Path) -> int | None:
    settings = durable.read_json(folder / "config.json")
    window = settings.get("text_config", settings).get("max_position_embeddings")
    return int(window) if window else None
