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
from errors import IntegrityError, UsageError
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
        version = self.resolve(name)
        known = self._known(version)
        if known is not None:
            return known
        with self._lock:
            return self._known(version) or self._verify(version)

    def known(self, name: str) -> ServedModel | None:
        """Return the model of that name at once, or None where `find` would have to look through it first.

        Raises UsageError when there is no such model, IntegrityError when it is no whole version.
        """
        return self._known(self.resolve(name))

    def resolve(self, name: str) -> Version | None:
        """Return the version of that name, not looked through; None: the base. Raises as `known` does."""
        if name == BASE:
            return None
        if name == CURRENT:
            return self._store.current()
        try:
            return self._store.get(name)
        except UsageError as error:
            names = ", ".join(self.names())
            raise UsageError(f"model: found no version {name!r}, expected one of: {names}") from error

    def _known(self, version: Version | None) -> ServedModel | None:
        """Look it up without the lock, which is held for as long as a large base is looked through."""
        if version is not None:
            return self._verified.get((version.name, version.manifest_sha256))
        base = self._bases.get(None)
        return None if base is None else ServedModel(BASE, base)

    def _verify(self, version: Version | None) -> ServedModel:
        if version is None:
            return ServedModel(BASE, self._base(None))
        self._store.verify(version)
        base = self._base(version)
        if version.facts.base_sha256 != base.sha256:
            raise IntegrityError(
                f"{version.name} was trained on other base weights than those in {base.folder}; set "
                f"model.base to {version.facts.base_model!r}"
            )
        served = ServedModel(version.name, base, version.folder, version.manifest_sha256)
        self._verified[version.name, version.manifest_sha256] = served
        return served

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
