"""The one base model that answers and the adapters on it: loaded when needed, dropped when long unused.

The base that comes next is loaded into the machine's memory beside it, so that changing over takes a moment.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from peft import PeftModel
from safetensors import SafetensorError

from config import Config
from errors import ConfigError, EnvironmentNotReady, TrainboxError
from evaluation.short_memory import free_memory
from serving.catalogue import ServedModel
from training.model import choose_precision, device, known_warnings, load_base

logger = logging.getLogger(__name__)

ADAPTERS_KEPT = 4
"""Adapters that stay loaded when nobody is being answered with them."""

Place = Literal["accelerator", "cpu"]


class AdaptedModel:
    """A base with several adapters, of which one, or none, is in use; for one thread, but for `fetch`."""

    def __init__(self, config: Config) -> None:
        if config.model.load_in_4bit and config.serving.during_training != "share":
            raise ConfigError(
                f"serving.during_training: found {config.serving.during_training!r} with model.load_in_4bit, "
                "expected 'share': weights in 4 bits cannot leave the GPU"
            )
        self._config = config
        self._plain: Any = None
        self._adapted: Any = None
        self._loaded: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._in_use: str | None = None
        self._count = 0
        self._fetched: tuple[Path, Any] | None = None
        self.base: Path | None = None
        """Folder of the base that is loaded."""

    @property
    def model(self) -> Any:
        """What is called to get logits, with the adapter in use."""
        return self._plain if self._adapted is None else self._adapted

    @property
    def adapters(self) -> list[str]:
        """Names of the versions that are loaded, the longest unused first."""
        return [name for name, _ in list(self._loaded)]

    @property
    def device(self) -> str | None:
        """Where answers are made; None while no base is loaded."""
        plain = self._plain
        return None if plain is None else str(plain.device)

    def fetch(self, base: Path) -> None:
        """Load a base that comes next beside the one in use; any thread may, one at a time.

        What cannot lie in memory beside the other is left for `settle`, which loads it when it is needed.
        """
        self._fetched = None  # what was to come next, and did not
        if base == self.base or self._config.model.load_in_4bit:
            return
        needed, free = _weights_bytes(base), psutil.virtual_memory().available
        if needed > free:
            logger.warning(
                "%s needs %d bytes beside what is loaded, %d are free: requests will wait for it",
                *(base, needed, free),
            )
            return
        try:
            self._fetched = base, self._load_base(base, torch.device("cpu"))
        except (OSError, TrainboxError, RuntimeError, MemoryError) as error:
            logger.error("Cannot load what comes next, and will try again when it is asked for: %r", error)

    def is_at(self, base: Path, place: Place) -> bool:
        """Tell whether this base is loaded there."""
        return base == self.base and _device(place) == self._plain.device

    def settle(self, base: Path, place: Place) -> None:
        """Load this base in place of any other, and bring it there; nothing may be in flight.

        Raises ConfigError, or EnvironmentNotReady where a file or memory is missing; then no base is loaded.
        """
        try:
            self._settle(base, place)
        except (OSError, torch.OutOfMemoryError) as error:
            self._forget()
            raise EnvironmentNotReady(f"{base} cannot be loaded now: {error}") from error

    def _settle(self, base: Path, place: Place) -> None:
        if base != self.base:
            self._forget()
            fetched, self._fetched = self._fetched, None
            if fetched is not None and fetched[0] == base:
                self._plain = fetched[1]
            else:
                del fetched  # its memory may be needed
                self._plain = self._load_base(base, _device(place))
            self.base = base
            logger.info("Answering on %s from now on", base)
        if _device(place) != self._plain.device:
            logger.info("Moved the model to the %s", _device(place).type)
            self._plain.to(_device(place))
            free_memory()

    def _load_base(self, base: Path, where: torch.device) -> Any:
        began = time.monotonic()
        precision = choose_precision(self._config.model)
        model = load_base(base, self._config.model, precision, where).eval()
        logger.info("Loaded %s in %s in %.1f s", base, precision, time.monotonic() - began)
        return model

    def use(self, served: ServedModel) -> None:
        """Answer with this model from now on, whose base is loaded; loads its adapter if need be.

        Raises EnvironmentNotReady where its files or memory are missing; any other model can be used then.
        """
        if served.adapter is None:
            self._switch(None)
            return
        key = (served.name, served.key)
        if key not in self._loaded:
            try:
                self._load(served, served.adapter)
            except (OSError, ValueError, SafetensorError, MemoryError, torch.OutOfMemoryError) as error:
                free_memory()
                raise EnvironmentNotReady(f"{served.name} cannot be loaded now: {error}") from error
        self._loaded.move_to_end(key)
        self._switch(self._loaded[key])

    def drop_unused(self, needed: Collection[tuple[str, str]]) -> None:
        """Drop the longest unused adapters above `ADAPTERS_KEPT`, but none that is `needed`."""
        for key in [key for key in self._loaded if key not in needed]:
            if len(self._loaded) <= ADAPTERS_KEPT:
                return
            adapter = self._loaded.pop(key)
            if self._in_use == adapter:
                self._switch(self._loaded[next(reversed(self._loaded))])
            self._adapted.delete_adapter(adapter)
            logger.info("Dropped the adapter of %s", key[0])

    def _load(self, served: ServedModel, folder: Path) -> None:
        began = time.monotonic()
        self._count += 1
        adapter = f"adapter{self._count}"
        settings: dict[str, Any] = {"adapter_name": adapter, "autocast_adapter_dtype": False}
        with known_warnings():
            if self._adapted is None:
                self._adapted = PeftModel.from_pretrained(self._plain, str(folder), **settings).eval()
                self._in_use = adapter
            else:
                self._adapted.load_adapter(str(folder), low_cpu_mem_usage=True, **settings)
        self._narrow(adapter)
        self._loaded[served.name, served.key] = adapter
        logger.info("Loaded the adapter of %s in %.2f s", served.name, time.monotonic() - began)

    def _narrow(self, adapter: str) -> None:
        """Hold an adapter in the base's precision; autocast would narrow it for every token, alike."""
        if self._plain.dtype == torch.bfloat16:
            for name, parameter in self._adapted.named_parameters():
                if f".{adapter}." in name:
                    parameter.data = parameter.data.to(torch.bfloat16)

    def _switch(self, adapter: str | None) -> None:
        if adapter == self._in_use or self._adapted is None:
            return
        tuner = self._adapted.base_model
        if adapter is None:
            tuner.disable_adapter_layers()
        else:
            if self._in_use is None:
                tuner.enable_adapter_layers()
            self._adapted.set_adapter(adapter, inference_mode=True)
        self._in_use = adapter

    def _forget(self) -> None:
        self.base = self._plain = self._adapted = self._in_use = None
        self._loaded.clear()
        free_memory()


def _weights_bytes(base: Path) -> int:
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))


def _device(place: Place) -> torch.device:
    return device() if place == "accelerator" else torch.device("cpu")
