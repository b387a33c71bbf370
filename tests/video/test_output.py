"""Output folders are checked before the work, and results that cannot be written are printed."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from peft_aim.__main__ import main
from peft_aim.video.data.data import Data
from peft_aim.video.evaluate import evaluate
from peft_aim.video.output import check_output, check_writable, printed_if_lost
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train

RECIPE = Recipe(frames=2, epochs=1, batch_size=4, workers=0)


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_check_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "deeper")
    check_output(tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", r"The output .*/file is a file. Give a folder."),
        ("file/out", r"The output .*/file/out cannot be created, since .*/file is a file. Give another folder."),
        (
            "new/" + 300 * "n",
            r"The output .*n cannot be written to: File name too long. Give another folder, or make ",
        ),
        ("/proc/out", r"The output /proc/out cannot be written to: .*. Give another folder, or make room and allow"),
    ],
    ids=["file", "parent is a file", "name", "system"],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "convert", "demo"])
def test_commands_check_their_output_before_anything_is_loaded(command, tmp_path, folder, capsys, output, message):
    (tmp_path / "file").write_text("")
    of_model, wanted = ["--model", "no-such-model"], str(tmp_path / output)
    arguments = {
        "train": [str(folder), *of_model, "--output", wanted],
        "evaluate": ["no-such-adapter", str(folder), "--output", wanted],
        "convert": ["no-such-file.pth", wanted, *of_model],
        "demo": ["--output", wanted],
    }
    assert main([command, *arguments[command]]) == 1
    error = capsys.readouterr().err
    assert re.search(f"^peft-aim {command}: {message}", error) and "no-such" not in error
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_found_before_the_work(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert main(["train", str(folder), "--model", "no-such-model", "--output", str(tmp_path / "out")]) == 1
    assert "out cannot be written to: No space left on device. Give another folder, or" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_cannot_be_written_is_printed(tmp_path, folder, image_model, capsys, monkeypatch):
    train(Data.find(folder), image_model, tmp_path / "adapter", RECIPE)
    (tmp_path / "results" / "evaluation.json").mkdir(parents=True)  # in the way
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "adapter"), str(folder), "--workers", "0", "--output"]
    assert main([*arguments, str(tmp_path / "results")]) == 1
    captured = capsys.readouterr()
    assert "4 videos evaluated, 0 skipped" in captured.out and "true / predicted" in captured.out
    file = tmp_path / "results" / "evaluation.json"
    assert (
        f"peft-aim evaluate: {file} cannot be written: Is a directory. The results stand above. Make" in captured.err
    )
    monkeypatch.setattr("peft_aim.video.evaluate.draw_confusion", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(str(tmp_path / "adapter"), folder, tmp_path / "other", workers=0)
    assert "4 videos evaluated, 0 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.png"),
            "a.png cannot be written: No space left on device.",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "out/it cannot be written: No space left on device."),
        (OSError("encoder error"), "out/it cannot be written: encoder error."),
    ],
)
def test_the_error_names_what_cannot_be_written_and_why(error, message, capsys):
    wanted = pytest.raises(OSError, match=f"^{message} The results stand above. Make room")
    with wanted as raised, printed_if_lost("top-1 90.0%", Path("out/it")):
        raise error
    assert "None" not in str(raised.value) and capsys.readouterr().out == "\ntop-1 90.0%\n\n"


def test_results_that_grow_are_printed_as_far_as_they_are(capsys):
    class Lines(list):
        def __str__(self) -> str:
            return "\n".join(self)

    for found, printed, stand in (["a", "b"], "\na\nb\n\n", True), ([], "", False):
        lines, wanted = Lines(), pytest.raises(OSError, match="The output cannot be written: No space left")
        with wanted as raised, printed_if_lost(lines):
            lines.extend(found)
            full()
        assert capsys.readouterr().out == printed and ("stand above" in str(raised.value)) == stand


@pytest.mark.parametrize("name", ["report.json", "README.md"])
def test_a_report_that_cannot_be_written_is_printed_and_the_adapter_is_kept(
    tmp_path, folder, image_model, capsys, monkeypatch, name
):
    replace = Path.replace

    def refuse(path, target):
        if Path(target) == tmp_path / "out" / name and (Path(target).parent / "adapter_model.safetensors").exists():
            full()
        return replace(path, target)

    options = ["--frames", "2", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--output"]
    arguments = ["train", str(folder), "--model", image_model, *options, str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        assert main(arguments) == 1
    captured = capsys.readouterr()
    if name == "report.json":
        assert "trainable parameters" in captured.out and "val: 4 videos evaluated" in captured.out
        assert f"{tmp_path / 'out' / name} cannot be written: No space left on device. The results" in captured.err
    assert "Traceback" not in captured.err and "No space left on device" in captured.err
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() and (tmp_path / "out" / "checkpoints").is_dir()
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_file() and not path.stat().st_size]
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "out" / name).is_file() and not (tmp_path / "out" / "checkpoints").exists()


def test_a_disk_that_fills_up_in_training_says_whether_to_resume(tmp_path, folder, image_model, capsys, monkeypatch):
    from peft_aim.video.training.trainer import ClipTrainer

    save = ClipTrainer.save_model

    def fills_up(self, *args, **kwargs):
        return save(self, *args, **kwargs) if self.state.global_step < self.full_at else full()

    monkeypatch.setattr(ClipTrainer, "save_model", fills_up)
    options = ["--frames", "2", "--epochs", "2", "--batch-size", "4", "--workers", "0", "--output"]
    for step, then in ((1, "train again"), (4, "continue with --resume")):
        monkeypatch.setattr(ClipTrainer, "full_at", step, raising=False)
        assert main(["train", str(folder), "--model", image_model, *options, str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / 'out'} cannot be written to: its disk is full or read-only ([Errno 28] No space" in error
        assert f"Make room, and {then}." in error
        assert (tmp_path / "out").exists() == (step == 4)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "a.txt"),
            "a.txt: No space left. Make room on its disk and allow writing",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system. Make room on its disk and allow"),
        (OSError(errno.EACCES, "Permission denied", "a.txt"), "a.txt: Permission denied. Change its permissions, or"),
        (OSError(errno.ENOENT, "No such file", "a.txt"), "a.txt: No such file. Check the path."),
        (OSError("The Hub is down. Try again."), "The Hub is down. Try again."),
    ],
)
def test_errors_of_the_system_are_messages_with_what_to_do(monkeypatch, capsys, error, message):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("peft_aim.video.demo.demo", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err.startswith(f"peft-aim demo: {message}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_device_is_a_message(monkeypatch, capsys):
    monkeypatch.setattr("peft_aim.video.demo.demo", lambda _: Path("/dev/full").write_text("text"))
    assert main(["demo"]) == 1
    assert "No space left on device. Make room" in capsys.readouterr().err
