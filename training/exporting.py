"""A version for use elsewhere: an adapter, a full model, or a GGUF file.

What was written is loaded back and asked the fixed prompts; it appears under its name only when it answers
as the version does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import durable
from config import Config, Paths
from errors import IntegrityError, UsageError
from training.full_models import Likeness, StoredPrecision, base_under
from training.gguf_file import obstacle, write_gguf
from training.merging import TOLERANCE, Merge, compare, copy_files, load_adapted, load_plainly, outputs_of
from training.model import set_threads
from training.publication import ADAPTER_FILES, TOKENIZER_FILES
from training.versions import Version

ExportFormat = Literal["peft", "merged", "gguf"]


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    format: ExportFormat
    """``merged`` in the place of ``gguf`` where `obstacle` says why."""
    likeness: Likeness
    obstacle: str | None = None

    @property
    def command(self) -> str | None:
        """What makes the GGUF file from the merged model, with llama.cpp's converter."""
        if self.obstacle is None:
            return None
        return f"python convert_hf_to_gguf.py {self.folder} --outfile {self.folder / 'model.gguf'}"


class Exporter:
    """Exports versions of one base folder."""

    def __init__(self, paths: Paths, config: Config) -> None:
        self._paths = paths
        self._config = config

    def export(
        self, version: Version, form: ExportFormat, destination: Path, precision: StoredPrecision = "float32"
    ) -> Export:
        """Write `version` to the new folder `destination`.

        Raises UsageError when the folder is taken, IntegrityError when what was written does not answer as
        the version does; then nothing stays.
        """
        destination = destination.expanduser().absolute()
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise UsageError(f"{destination}: is there already, expected a new folder; name another one")
        durable.verify_folder(version.folder)
        set_threads(self._config.train)
        base = base_under(self._paths, self._config.model, version.facts)
        staging = destination.with_name(f".{destination.name}{durable.PARTIAL_SUFFIX}")
        if staging.exists():
            durable.remove_tree(staging)
        durable.make_folder(staging)
        try:
            export = self._write(version, base, form, staging, precision)
            self._publish(version, export, precision, destination)
        finally:
            if staging.exists():
                durable.remove_tree(staging)
        return replace(export, folder=destination)

    def _write(
        self, version: Version, base: Path, form: ExportFormat, folder: Path, precision: StoredPrecision
    ) -> Export:
        merge = Merge(self._paths, self._config, version, base)
        if form == "peft":
            self._write_adapter(version, base, folder)
            found = outputs_of(load_adapted(base, folder), merge.template, merge.prompts)
            return Export(folder, form, compare(merge.reference, found, TOLERANCE["float32"]))
        reason = obstacle(merge.model, base) if form == "gguf" else None
        if form == "merged" or reason is not None:
            merge.save(folder, precision)
            likeness = merge.likeness(load_plainly(folder), precision)
            return Export(folder, "merged", likeness, reason)
        file = f"{version.name}-{precision}.gguf"
        write_gguf(merge.model, base, version.name, folder / file, precision)
        merge.model = None
        return Export(folder, form, merge.likeness(load_plainly(folder, gguf_file=file), precision))

    def _write_adapter(self, version: Version, base: Path, folder: Path) -> None:
        """Write the adapter for PEFT, naming the base as others know it."""
        copy_files(version.folder, folder, (*ADAPTER_FILES, *TOKENIZER_FILES, "README.md"))
        adapter: dict[str, Any] = durable.read_json(folder / "adapter_config.json")
        name = self._config.model.base
        is_hub_name = (
            version.facts.consolidated is None
            and name != "embedded"
            and not (self._paths.base / Path(name).expanduser()).is_dir()
        )
        adapter["base_model_name_or_path"] = name if is_hub_name else str(base)
        durable.write_json(folder / "adapter_config.json", adapter)

    @staticmethod
    def _publish(version: Version, export: Export, precision: StoredPrecision, destination: Path) -> None:
        if not export.likeness.is_close:
            raise IntegrityError(
                f"{version.name} as {export.format} answers otherwise: {export.likeness}; nothing was written"
            )
        facts = {
            "version": version.name,
            "version_manifest_sha256": version.manifest_sha256,
            "format": export.format,
            "precision": precision,
            "likeness": export.likeness.model_dump(mode="json"),
        }
        durable.seal_folder(export.folder, facts)
        if destination.exists():
            destination.rmdir()
        durable.publish_folder(export.folder, destination)
