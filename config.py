"""config.yaml as types, and every path of the base folder, named once.

A key is looked up in the flags, then in the environment (``TRAINBOX_TRAIN__LEARNING_RATE``), then in
``config.yaml``, then here. Key names are Hugging Face's where Hugging Face has one. No other module reads a
setting from the environment or builds a path of the base folder.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import InitSettingsSource

from durable import make_folder
from errors import ConfigError

ENVIRONMENT_PREFIX = "TRAINBOX_"

Port = Annotated[int, Field(ge=0, le=65535)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """One part of config.yaml; frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Which base model is trained and how its weights are held."""

    base: str = "embedded"
    """``embedded`` (SmolLM2-135M-Instruct), a folder, or a Hugging Face name in the local cache."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base weights; ``auto`` times both for a moment and takes the faster."""
    load_in_4bit: bool = False
    """QLoRA: base weights in 4 bits (nf4, double quantisation); needs CUDA and bitsandbytes."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention kernel, by its transformers name."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    chat_template_kwargs: dict[str, Any] = {}
    """Values passed to the chat template, for instance ``{enable_thinking: false}``."""


class InboxConfig(Section):
    """When a dropped file is taken."""

    settle_seconds: NonNegativeFloat = 3.0
    """Seconds for which size and times of a file must stand still before it is taken."""
    poll_seconds: PositiveFloat = 2.0
    """Seconds between two looks at the inbox; file events only make a look come sooner."""
    allow_duplicates: bool = False
    """Train a file again whose very bytes were trained before."""
    max_file_bytes: PositiveInt = 10 * 2**30
    """Larger files are rejected before they are copied."""
    unfinished_line_seconds: NonNegativeFloat = 30.0
    """A file of lines whose last line has no end must stand still for so long: it may be half copied."""


class DataConfig(Section):
    """What a record must be like, and which records are held out."""

    max_length: PositiveInt = 2048
    """Tokens in one record, template included."""
    excess_length: Literal["refuse", "drop", "truncate", "split"] = "refuse"
    """What happens to a longer record: refused, left out, cut at the end, or cut into several."""
    max_bad_fraction: Fraction = 0.1
    """A file with a larger share of refused records is rejected as a whole."""
    max_line_bytes: PositiveInt = 8 * 2**20
    """A longer line is refused without being read into memory."""
    max_bytes: PositiveInt = 20 * 2**30
    """A file that holds more, unpacked, is refused when so much has been read."""
    held_out_fraction: Fraction = 0.2
    """Share of records kept for evaluation for ever, never trained, chosen by a seeded hash."""
    held_out_max_records: Annotated[int, Field(ge=0)] = 100
    """At most this many records are held out from one file."""
    held_out_min_records: PositiveInt = 20
    """A file with fewer records is trained whole."""
    near_copy_similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """A record with so large a share of a held-out one's words, rare ones counting more, is not trained."""


class TrainConfig(Section):
    """The optimisation of one run."""

    num_train_epochs: PositiveInt = 1
    """Passes over a file."""
    learning_rate: PositiveFloat = 5e-4
    """Peak learning rate of each run."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up; each file has its own."""
    min_lr_ratio: Fraction = 0.1
    """The learning rate ends at this share of its peak."""
    warmup_ratio: Fraction = 0.03
    """Share of a run's steps in which the learning rate rises from zero."""
    per_device_train_batch_size: PositiveInt = 8
    """Records in one forward and backward pass."""
    gradient_accumulation_steps: PositiveInt = 1
    """Passes that make one optimizer step."""
    batching: Literal["buckets", "packed"] = "buckets"
    """``buckets``: records of like length, padded; ``packed``: one row without padding."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    optim: str = "adamw_torch_fused"
    """Optimizer, by its Hugging Face name."""
    lora_r: PositiveInt = 16
    """Rank of a new adapter; a version that is continued keeps its own."""
    lora_alpha: PositiveInt = 32
    """Scale of a new adapter: its output is multiplied by alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: ``all-linear`` or a list of module names."""
    optimizer_state: Literal["carry", "reset"] = "carry"
    """Whether a run starts with the optimizer moments of the version before."""
    eval_steps: PositiveInt = 100
    """Evaluate and checkpoint every N steps, at least four times a run, and at its end."""
    save_total_limit: Annotated[int, Field(ge=2)] = 3
    """Checkpoints kept in a run; the best and the last are always among them."""
    early_stopping_patience: Annotated[int, Field(ge=0)] = 0
    """Evaluations in a row without improvement after which a run ends early; 0 means never."""
    early_stopping_threshold: NonNegativeFloat = 0.01
    """By how much a value must fall to count as an improvement."""
    early_stopping_metric: Literal["score", "eval_loss"] = "eval_loss"
    """What has to improve."""
    seed: int = 42
    """Seed of the order, the dropout, a new adapter and the held-out choice."""
    preference_loss: Literal["dpo", "orpo"] = "dpo"
    """How preference pairs are trained."""
    preference_beta: PositiveFloat = 0.1
    """DPO's beta or ORPO's lambda."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the worker; 0 leaves the choice to torch."""
    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = []
    """Who else is told the numbers of a run; its library must be installed."""
    replay_ratio: Annotated[float, Field(ge=0, le=0.9)] = 0.3
    """Share of the records of a run that come from the files learned before."""
    replay_memory_records: Annotated[int, Field(ge=0)] = 2000
    """Records of each trained file that are kept for that, for ever; 0 keeps none of later files."""


class EvaluationConfig(Section):
    """How answers and losses are measured."""

    per_device_eval_batch_size: PositiveInt = 8
    """Records scored, or prompts answered, at once; changes speed and memory, not results."""
    max_new_tokens: PositiveInt = 256
    """Longest generated answer."""
    max_generation_seconds: PositiveFloat = 60.0
    """Wall-clock limit of one batch of answers."""
    suite_max_new_tokens: PositiveInt = 768
    """Longest answer to an item of a suite; twice the expected one is the limit where that is less."""
    sample_prompts: Annotated[int, Field(ge=0)] = 3
    """Held-out prompts answered at each evaluation and shown live."""
    fixed_eval_prompts: Annotated[int, Field(ge=0)] = 24
    """The same, for exact match: as many of them as `max_share` has room for."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Largest share of a run's time for such answers; those of the start and of the end are always given."""
    suites: list[str] = ["everyday_facts", "everyday_formats"]
    """Suites that each new version is tested on: names of ours, or paths of JSONL files; may be empty."""
    max_test_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Time for testing a new version, as a share of its training; some losses are measured in any case."""


class ScoringConfig(Section):
    """Which checkpoint of a run is best; lower scores are better."""

    selection: Literal["score", "robust", "eval_loss"] = "score"
    """``score``: the lowest; ``robust``: it without what misleads it; ``eval_loss``: the lowest loss."""
    eval_loss_weight: NonNegativeFloat = 0.5
    """How much the held-out loss counts."""
    gap_weight: NonNegativeFloat = 0.3
    """How much its distance from the training loss counts, as a share of it."""
    perplexity_weight: NonNegativeFloat = 0.1
    """How much the perplexity counts, as a share of 20."""
    improvement_weight: NonNegativeFloat = 0.1
    """What is taken off when a held-out loss beats the one before."""


class PromotionConfig(Section):
    """When a new version replaces the current one."""

    policy: Literal["not_worse", "better", "always", "manual"] = "not_worse"
    """What a new version must show: no harm, or a gain besides; always and manual ask for nothing."""
    tolerance: NonNegativeFloat = 0.02
    """Nats per token by which held-out loss may significantly rise before a version is held."""
    suite_tolerance: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Percentage points of the suites' right answers that may get significantly lost before it is held."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence of the interval that decides."""


class WorkerConfig(Section):
    """How the training process is supervised."""

    hang_seconds: PositiveFloat = 600.0
    """A worker that says nothing for so long is killed and resumed."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Times a job is resumed after a crash or a hang before it fails."""
    stop_grace_seconds: PositiveFloat = 60.0
    """Time a worker has to save and end after it was told to."""
    preload: bool = True
    """Start the worker's imports while a file settles."""


class DiskConfig(Section):
    """How much of the disk is left alone."""

    min_free_bytes: Annotated[int, Field(ge=0)] = 2 * 2**30
    """A job waits, and uses up no attempt, while less than this would be left free."""


class RetentionConfig(Section):
    """What is kept of old runs and versions."""

    max_bytes: Annotated[int, Field(ge=0)] = 100 * 2**30
    """Versions, backups and runs are removed, oldest first, above this; never what is still needed."""
    run_logs: PositiveInt = 200
    """Newest worker logs kept in logs/runs/."""


class BackupConfig(Section):
    """Where versions are copied to."""

    root: str = ""
    """A second folder, best on another disk, that gets a verified copy of each version; empty means none."""


class LedgerConfig(Section):
    """The index of jobs and metrics."""

    url: Annotated[str, Field(pattern=r"^($|sqlite:///|postgresql\+psycopg://)")] = ""
    """SQLAlchemy URL of a database that holds this base folder alone; empty means SQLite in status/ledger.db.

    It is stored with each run: a password belongs into ~/.pgpass."""


class MonitoringConfig(Section):
    """How often signals are written."""

    status_seconds: PositiveFloat = 2.0
    """Longest time between two writes of status/training_status.json."""
    sample_steps: Annotated[int, Field(ge=0)] = 10
    """Look closely (entropy, every adapted layer) at each N-th step; 0 means never."""
    max_overhead: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Largest share of the training time for that; beyond it the looks come further apart."""


class ServingConfig(Section):
    """What is shown and answered over HTTP."""

    host: str = "127.0.0.1"
    """Address that both servers listen on; any other than a loopback one needs a token."""
    token_file: str = ""
    """File whose first line callers must send as a bearer token; empty: a systemd credential, or none."""
    max_body_bytes: PositiveInt = 2**20
    """Longer requests are refused."""
    monitor: bool = True
    """Whether the daemon serves the page and the training API."""
    monitor_port: Port = 8080
    """Port of the page and the training API; 0 takes a free one."""
    inference_port: Port = 9000
    """Port of `trainbox serve`; 0 takes a free one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What answers: this process, or a vLLM server that is started with the same model."""
    during_training: Literal["share", "cpu", "refuse"] = "share"
    """While a run trains, answers share the GPU with it, are made on the CPU, or are refused.

    Without a GPU the first two are alike.
    """
    max_batch: PositiveInt = 32
    """Requests answered at once."""
    max_queue: PositiveInt = 256
    """Requests that may wait; further ones are told to come back."""
    max_prompt_tokens: PositiveInt = 4096
    """Longer prompts are refused."""
    max_output_tokens: PositiveInt = 1024
    """Longest answer a request may ask for."""


class LoggingConfig(Section):
    """The daemon's own log."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged."""
    max_bytes: PositiveInt = 10 * 2**20
    """logs/daemon.log is rotated at this size."""
    backups: Annotated[int, Field(ge=0)] = 5
    """Rotated logs kept."""


class Config(BaseSettings):
    """All of config.yaml."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    model: ModelConfig = ModelConfig()
    inbox: InboxConfig = InboxConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    scoring: ScoringConfig = ScoringConfig()
    promotion: PromotionConfig = PromotionConfig()
    worker: WorkerConfig = WorkerConfig()
    disk: DiskConfig = DiskConfig()
    retention: RetentionConfig = RetentionConfig()
    backup: BackupConfig = BackupConfig()
    ledger: LedgerConfig = LedgerConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    serving: ServingConfig = ServingConfig()
    logging: LoggingConfig = LoggingConfig()


def config_keys() -> Iterator[str]:
    """Yield every key of config.yaml as ``section.key``."""
    for section, field in Config.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for key in field.annotation.model_fields:
            yield f"{section}.{key}"


def load_config(base: Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``base/config.yaml`` under the environment and the `overrides` (``train.seed=1``).

    A missing file means the defaults. Raises ConfigError that names the place, the key and the nearest
    known key or the expected value.
    """
    path = base / "config.yaml"
    _refuse_unknown(_keys_of_environment(), "the environment")
    from_file = _read_yaml(path)
    _refuse_unknown(_flat_keys(from_file), str(path))
    from_flags = _parse_overrides(overrides)

    class Layered(Config):
        """Config with the file below the environment and the flags above it."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        loaded = Layered(**from_flags)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(detail, path) for detail in error.errors())) from error
    return Config.model_construct(**{name: getattr(loaded, name) for name in Config.model_fields})


def dump_config(config: Config) -> str:
    """Write `config` as YAML that `load_config` reads back to the same values."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: found {type(document).__name__}, expected sections such as 'train:'")
    # A section whose keys are all commented out reads as null and means its defaults.
    return {section: values for section, values in document.items() if values is not None}


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"{override!r}: expected SECTION.KEY=VALUE, for instance train.seed=1")
        _refuse_unknown([key], "the flags")
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = yaml.safe_load(value)
    return nested


def _flat_keys(document: dict[str, Any]) -> Iterator[str]:
    for section, values in document.items():
        if isinstance(values, dict):
            yield from (f"{section}.{key}" for key in values)
        else:
            yield str(section)


def _keys_of_environment() -> Iterator[str]:
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1)


def _refuse_unknown(keys: Iterator[str] | list[str], place: str) -> None:
    known = [*config_keys(), *Config.model_fields]
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "see config.yaml for all keys"
            raise ConfigError(f"{place}: unknown key {key!r}; {hint}")


def _explain(detail: Any, path: Path) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    return f"{path}: {key}: found {detail['input']!r}, expected: {detail['msg']}"


@dataclass(frozen=True)
class RunPaths:
    """Every path of one run, ``models/runs/<job_id>/``."""

    folder: Path

    @property
    def job_file(self) -> Path:
        return self.folder / "job.json"

    @property
    def config_file(self) -> Path:
        """The resolved configuration this run trains with."""
        return self.folder / "config.yaml"

    @property
    def start(self) -> Path:
        """What the run began with: its parent version and its precision."""
        return self.folder / "start.json"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def input(self, suffix: str) -> Path:
        """The private copy of the dropped file; `suffix` is for instance ``.jsonl.gz``."""
        return self.data / f"input{suffix}"

    @property
    def report(self) -> Path:
        """The report card; written last, so that its presence means validation is complete."""
        return self.data / "report.json"

    @property
    def report_text(self) -> Path:
        return self.data / "report.txt"

    @property
    def refused(self) -> Path:
        return self.data / "refused.jsonl"

    @property
    def train_records(self) -> Path:
        return self.data / "train.jsonl"

    @property
    def held_out_records(self) -> Path:
        return self.data / "held_out.jsonl"

    @property
    def replay_records(self) -> Path:
        """Records of earlier files that this run trains again."""
        return self.data / "replay.jsonl"

    @property
    def replay_facts(self) -> Path:
        """Which earlier files these are; written last."""
        return self.data / "replay.json"

    @property
    def tokens(self) -> Path:
        """Folder of the tokenised records."""
        return self.data / "tokens"

    @property
    def trainer_log(self) -> Path:
        return self.folder / "trainer_log.jsonl"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def version_test(self) -> Path:
        """Folder of the test of what was trained: its plan and each finished part."""
        return self.folder / "version_test"

    @property
    def evolution(self) -> Path:
        """Folder of the answers to the same held-out prompts, as the run goes on."""
        return self.folder / "evolution"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files, where `train.report_to` names it."""
        return self.folder / "tensorboard"

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"


@dataclass(frozen=True)
class Paths:
    """Every path of a base folder."""

    base: Path

    def create(self) -> None:
        """Make the folders that are missing."""
        for folder in (
            *(self.processing, self.done, self.rejected, self.failed, self.skipped),
            *(self.status_file.parent, self.base_models, self.versions, self.runs, self.held_out),
            self.run_logs,
        ):
            make_folder(folder)

    @property
    def config_file(self) -> Path:
        return self.base / "config.yaml"

    @property
    def inbox(self) -> Path:
        return self.base / "inbox"

    @property
    def processing(self) -> Path:
        return self.inbox / "processing"

    @property
    def done(self) -> Path:
        return self.inbox / "done"

    @property
    def rejected(self) -> Path:
        return self.inbox / "rejected"

    @property
    def failed(self) -> Path:
        return self.inbox / "failed"

    @property
    def skipped(self) -> Path:
        return self.inbox / "skipped"

    @property
    def status_file(self) -> Path:
        return self.base / "status" / "training_status.json"

    @property
    def flagged_examples(self) -> Path:
        return self.base / "status" / "flagged_examples.json"

    @property
    def alerts(self) -> Path:
        """The alerts that began or ended while no job ran."""
        return self.base / "status" / "alerts.jsonl"

    @property
    def daemon_lock(self) -> Path:
        return self.base / "status" / "daemon.lock"

    @property
    def worker_lock(self) -> Path:
        return self.base / "status" / "worker.lock"

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def base_models(self) -> Path:
        return self.models / "base"

    @property
    def versions(self) -> Path:
        return self.models / "versions"

    @property
    def current(self) -> Path:
        """The link to the version that is served."""
        return self.models / "current"

    @property
    def current_record(self) -> Path:
        """What was chosen to be current, why, and by whom."""
        return self.models / "current.json"

    @property
    def versions_lock(self) -> Path:
        return self.base / "status" / "versions.lock"

    @property
    def housekeeping_lock(self) -> Path:
        """Held while versions are copied, merged or removed."""
        return self.base / "status" / "housekeeping.lock"

    @property
    def runs(self) -> Path:
        return self.models / "runs"

    @property
    def backups(self) -> Path:
        """Versions that were deleted, or copied aside."""
        return self.models / "backups"

    @property
    def consolidated(self) -> Path:
        """Full models: a base with an adapter merged into it."""
        return self.models / "consolidated"

    @property
    def memory_findings(self) -> Path:
        """How many records at once the GPU's memory held."""
        return self.models / "memory_findings.json"

    @property
    def ledger(self) -> Path:
        return self.base / "status" / "ledger.db"

    @property
    def held_out(self) -> Path:
        """One file of held-out records for each accepted file, kept for ever."""
        return self.models / "held_out"

    @property
    def replay(self) -> Path:
        """A sample of the records of each trained file, kept for ever."""
        return self.models / "replay"

    @property
    def evaluations(self) -> Path:
        """The answers of models to suites, a folder for each model."""
        return self.models / "evaluations"

    @property
    def monitor_address(self) -> Path:
        """Where the monitor listens, written while it does."""
        return self.base / "status" / "monitor.json"

    @property
    def inference_address(self) -> Path:
        """Where the inference server listens, written while it does."""
        return self.base / "status" / "inference.json"

    @property
    def log_file(self) -> Path:
        return self.base / "logs" / "daemon.log"

    @property
    def run_logs(self) -> Path:
        return self.base / "logs" / "runs"

    @property
    def trackio(self) -> Path:
        """Folder of Trackio's store of all runs, where `train.report_to` names it."""
        return self.base / "logs" / "trackio"

    @property
    def mlflow(self) -> Path:
        """MLflow's SQLite store of all runs, where `train.report_to` names it."""
        return self.base / "logs" / "mlflow.db"

    def control(self, command: str) -> Path:
        """The control file of a command, for instance ``.pause``."""
        return self.base / f".{command}"

    def run(self, job_id: str) -> RunPaths:
        return RunPaths(self.runs / job_id)
