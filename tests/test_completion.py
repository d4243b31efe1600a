"""Shell completion: the printed script, run by bash."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from unary.cli.completion import SHELLS, build_whole_parser
from unary.cli.main import COMMANDS, main
from unary.detectors import DETECTORS

pytest.importorskip("shtab", reason="scripts for shells are made by the extra completion")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    path = tmp_path_factory.mktemp("completion") / "unary.bash"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text: printed.append(text))
        assert main(["completion", "bash"]) == 0
    path.write_text("\n".join(printed))
    return path


def _complete(script, line, folder):
    """What bash offers at the end of a line."""
    words = line.split(" ")
    commands = [
        f"source {shlex.quote(str(script))}",
        f"COMP_WORDS=({' '.join(map(shlex.quote, words))})",
        f"COMP_CWORD={len(words) - 1}",
        f"COMP_LINE={shlex.quote(line)}",
        f"COMP_POINT={len(line)}",
        "function_name=$(complete -p unary | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        f'compopt() {{ :; }}; "$function_name" unary {shlex.quote(words[-1])} {shlex.quote(words[-2])}',
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(commands)], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_values(script, tmp_path):
    assert set(_complete(script, "unary ", tmp_path)) >= {command.name for command in COMMANDS}
    assert _complete(script, "unary cal", tmp_path) == ["calibrate"]
    assert "--detector" in _complete(script, "unary fit --det", tmp_path)
    assert set(_complete(script, "unary fit --detector ", tmp_path)) == set(DETECTORS)
    assert _complete(script, "unary fit --detector dense", tmp_path) == ["dense_laplacian"]
    assert "mammography" in _complete(script, "unary fit --profile m", tmp_path)
    assert {"--epochs", "--blind-spot-hole-px"} <= set(_complete(script, "unary fit --", tmp_path))
    assert "--track" in _complete(script, "unary evaluate --tr", tmp_path)
    assert "negative" in _complete(script, "unary manifest folder --only n", tmp_path)
    assert "inbreast" in _complete(script, "unary manifest inb", tmp_path)
    assert "wei2018" in _complete(script, "unary reproduce wei", tmp_path)
    assert "--learning-rate" in _complete(script, "unary reproduce wei2018 --lea", tmp_path)


def test_bash_completes_files_and_folders(script, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "manifest.csv").touch()
    (tmp_path / "other.csv").touch()
    offered = [name.rstrip("/") for name in _complete(script, "unary evaluate m", tmp_path)]
    assert offered == ["models"], "a model is a folder"
    offered = [name.rstrip("/") for name in _complete(script, "unary evaluate models m", tmp_path)]
    assert sorted(offered) == ["manifest.csv", "models"]
    assert [name.rstrip("/") for name in _complete(script, "unary fit --out mo", tmp_path)] == ["models"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS)
    assert "nearest_neighbour" in text


def test_the_whole_parser_knows_the_options_of_all_detectors():
    text = build_whole_parser()._actions[-1].choices["fit"].format_help()
    for flag in ("--epochs", "--neighbourhood-px", "--blind-spot-steps", "--track-files", "--quiet"):
        assert flag in text
