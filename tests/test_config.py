"""config.yaml as types: what is read from where, and what is refused how."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Config, Paths, config_keys, dump_config, load_config
from errors import ConfigError


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config()


def test_flags_win_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("train:\n  seed: 1\n  lora_r: 4\n  learning_rate: 1e-3\n")
    monkeypatch.setenv("TRAINBOX_TRAIN__SEED", "2")
    monkeypatch.setenv("TRAINBOX_TRAIN__LORA_R", "8")
    train = load_config(tmp_path, ["train.seed=3"]).train
    assert (train.seed, train.lora_r, train.learning_rate) == (3, 8, 0.001)


def test_the_resolved_config_reads_back_to_the_same_values(tmp_path: Path) -> None:
    config = load_config(tmp_path, ["train.lora_target_modules=[q_proj, v_proj]", "data.max_length=77"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path) == config


def test_a_section_without_keys_means_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train:\n")
    assert load_config(tmp_path) == Config()


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train:\n  lerning_rate: 1\n")
    with pytest.raises(
        ConfigError, match=r"config\.yaml: unknown key 'train\.lerning_rate'.*'train\.learning_rate'"
    ):
        load_config(tmp_path)


def test_an_unknown_environment_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINBOX_TRAIN_SEED", "2")
    with pytest.raises(ConfigError, match=r"the environment: unknown key 'train_seed'.*'train\.seed'"):
        load_config(tmp_path)


def test_a_wrong_value_is_refused_with_what_was_found_and_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lora_r: found 0, expected: .*greater than or equal to 1"):
        load_config(tmp_path, ["train.lora_r=0"])


@pytest.mark.parametrize("text", ["train: [", "- a list", "just text"])
def test_a_file_that_is_not_sections_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="config"):
        load_config(tmp_path)


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected SECTION\.KEY=VALUE"):
        load_config(tmp_path, ["train.seed"])


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.seed = 1


def test_keys_are_flat_and_unique() -> None:
    keys = list(config_keys())
    assert len(keys) == len(set(keys)) > 40
    assert "train.learning_rate" in keys


def test_paths_make_the_folders_of_a_base(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "base")
    paths.create()
    paths.create()
    for folder in (paths.done, paths.versions, paths.runs, paths.held_out, paths.run_logs, paths.processing):
        assert folder.is_dir()
    assert paths.control("pause") == tmp_path / "base" / ".pause"
