"""The demo never touches what is there, speaks the daemon's language, and says why when it fails."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress, TaskID

from config import load_config
from examples import demo
from examples.make_tickets import TRAIN_FILE
from monitoring.evaluation_windows import RecentExample
from monitoring.training_status import TrainingStatus


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what the demo prints."""
    stream = io.StringIO()
    monkeypatch.setattr(demo, "console", Console(file=stream, width=200))
    return stream


def test_each_run_takes_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    for name in ("demo", "demo-2", "demo-3"):
        folder = demo.free_folder(wanted)
        assert folder == tmp_path / name
        folder.mkdir()


def test_the_base_folder_holds_a_valid_config_and_the_tickets(tmp_path: Path, base_model: Path) -> None:
    paths = demo.make_base_folder(tmp_path / "demo", base_model)
    config = load_config(paths.base)
    assert config.model.base == str(base_model)
    assert (config.train.learning_rate, config.train.num_train_epochs) == (1e-3, 2)
    assert (paths.inbox / TRAIN_FILE.name).read_bytes() == TRAIN_FILE.read_bytes()


def test_a_daemon_that_cannot_start_fails_the_demo_with_its_last_words(
    tmp_path: Path, base_model: Path, output: io.StringIO
) -> None:
    paths = demo.make_base_folder(tmp_path / "demo", base_model)
    paths.config_file.write_text("train: {sed: 1}\n")
    with pytest.raises(demo.DemoFailed, match=r"unknown key 'train\.sed'.*daemon\.log"):
        demo.train(paths)


def test_a_folder_that_exists_is_left_alone_with_one_line_and_exit_code_1(
    tmp_path: Path, output: io.StringIO
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert demo.main(["--base", str(mine)]) == 1
    assert output.getvalue().startswith(f"demo: {mine}: exists already")
    assert list(mine.iterdir()) == []


def test_a_phase_that_is_over_has_a_full_bar(output: io.StringIO) -> None:
    progress = Progress(console=demo.console)
    tasks: dict[str, TaskID] = {}
    demo.show_phase(progress, tasks, TrainingStatus(state="validating", phase_done=10, phase_total=100))
    demo.show_phase(progress, tasks, TrainingStatus(state="training", batch_step=3, batch_total_steps=96))
    validating, training = progress.tasks
    assert validating.finished
    assert (training.completed, training.total) == (3, 96)


def test_the_training_bar_tells_step_loss_and_time_left() -> None:
    status = TrainingStatus(
        state="training", batch_step=3, batch_total_steps=96, loss=1.2345, eta_seconds=61.7
    )
    assert demo.training_numbers(status) == "3/96, loss 1.234, 62 s left"


def test_the_latest_answer_is_shown_as_text_and_not_as_markup(output: io.StringIO) -> None:
    example = RecentExample(
        step=24,
        current_file="tickets.jsonl",
        system_prompt=None,
        prompt="Where is my [bold]kettle[/bold]?",
        golden="{}",
        model_output="[red]late",
        matches=False,
        loss=None,
    )
    for panel in demo.latest_example(TrainingStatus(recent_examples=(example,))):
        demo.console.print(panel)
    assert "asked at step 24: not yet" in output.getvalue()
    assert "[bold]kettle[/bold]" in output.getvalue() and "[red]late" in output.getvalue()


def test_a_long_answer_is_shown_in_one_short_line() -> None:
    assert demo.shorten("a\nb " * 100, limit=10) == "a b a b a…"


def test_a_path_below_the_current_folder_is_shown_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.shown(tmp_path / "demo" / "inbox") == "demo/inbox"
    assert demo.shown(Path("/usr/bin")) == "/usr/bin"
