"""`sae-lm-eval talk` as a user runs it: at a prompt in a terminal, unattended, and with mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae_lm_eval import UserError
from sae_lm_eval.cli.main import app
from sae_lm_eval.talk.chosen import Sampling
from sae_lm_eval.talk.conversation import Model
from sae_lm_eval.talk.prompt_file import read_prompts
from sae_lm_eval.talk.terminal import Session

COMMAND = [str(Path(sys.executable).parent / "sae-lm-eval"), "talk", "--model_args"]
K4 = "pretrained=world,sae=world#blocks.2.hook_resid_post.k4"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def mistake(*arguments: str) -> str:
    """What a command raises, that has loaded no model before."""
    result = CliRunner().invoke(app, ["talk", *arguments])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


class TestMistakes:
    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch):
        def refuse(*_args, **_kwargs):
            raise AssertionError("a model was loaded before the mistake was told")

        monkeypatch.setattr(Model, "__init__", refuse)

    def test_of_files(self, tmp_path):
        (tmp_path / "empty.txt").write_text(" \n\n")
        (tmp_path / "prompts.txt").write_text("The pet")
        (tmp_path / "text.doc").write_text("The pet")
        base = ["--model_args", K4]
        assert mistake(*base, "--prompts", "nowhere.txt") == ("'nowhere.txt' cannot be read: No such file or directory")
        assert mistake(*base, "--prompts", str(tmp_path / "empty.txt")).endswith("empty.txt' holds no prompt.")
        assert mistake(*base, "--text", "nowhere.txt") == "There is no text file 'nowhere.txt'."
        assert "Choose from txt, jsonl, parquet" in mistake(*base, "--text", str(tmp_path / "text.doc"))
        page = str(tmp_path / "prompts.txt" / "page.html")
        message = mistake(*base, "--prompts", str(tmp_path / "prompts.txt"), "--html", page)
        assert message == f"'{page}' cannot be written: Not a directory. Name another file."
        assert mistake(*base, "--html", "x.html").startswith("--html needs something to show")

    @pytest.mark.parametrize(
        ("option", "value", "sentence"),
        [
            ("--temperature", "-1", "A temperature is a number of at least 0, and '-1.0' is not."),
            ("--temperature", "nan", "A temperature is a number of at least 0, and 'nan' is not."),
            ("--max_new_tokens", "0", "--max_new_tokens=0 must be a whole number of at least 1."),
            ("--seed", "-1", "--seed=-1 must be a whole number of at least 0."),
            ("--tokens", "0", "--tokens=0 must be a whole number of at least 1."),
        ],
    )
    def test_of_numbers(self, option, value, sentence):
        assert mistake("--model_args", K4, option, value) == sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model_args", f"{K4},splice=zer"], "splice 'zer' is unknown. Did you mean 'zero'?"),
        (["--model_args", "pretrained=world"], "Name a dictionary: "),
        (["--model_args", K4, "--prompt_format", "chat"], "world has no chat template: use --prompt_format plain."),
        (
            ["--model_args", K4, "--prompt_format", "chatty"],
            "--prompt_format 'chatty' is unknown. Did you mean 'chat'?",
        ),
        (["--model_args", K4, "--system", "Be kind."], "A system prompt needs a chat template"),
        (["--model_args", K4, "--sae", "world#blocks.9"], "The world has no dictionary 'blocks.9'."),
    ],
)
def test_mistakes_of_models(arguments, sentence):
    assert mistake(*arguments).startswith(sentence)


def test_a_user_s_mistake_exits_with_2_and_no_traceback():
    said = subprocess.run([*COMMAND, K4, "--prompts", "nowhere"], env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 2
    assert said.stderr == "sae-lm-eval: 'nowhere' cannot be read: No such file or directory\n"


class TestPrompts:
    def test_one_a_line(self, tmp_path):
        path = tmp_path / "prompts.txt"
        path.write_text("The pet\n\n  two words \u2028 on a line\n")
        assert read_prompts(path) == ["The pet", "  two words \u2028 on a line"]

    def test_jsonl(self, tmp_path):
        path = tmp_path / "prompts.jsonl"
        path.write_text('{"prompt": "two\\nlines", "n": 1}\n\n{"prompt": "007"}\n')
        assert read_prompts(path) == ["two\nlines", "007"]

    @pytest.mark.parametrize(
        ("written", "sentence"),
        [
            (
                '{"prompt": "a"}\n{"prompt": 7}',
                "Line 2 of '{}' is not an object with a \"prompt\": 'prompt' is 7; it must be a valid string.",
            ),
            ('["a"]', "Line 1 of '{}' is not an object with a \"prompt\""),
            ("{", "Line 1 of '{}' cannot be read as JSON: Expecting property name"),
        ],
    )
    def test_mistakes_in_jsonl(self, tmp_path, written, sentence):
        path = tmp_path / "prompts.jsonl"
        path.write_text(written)
        with pytest.raises(UserError) as error:
            read_prompts(path)
        assert str(error.value).startswith(sentence.format(path))

    def test_what_is_not_utf_8(self, tmp_path):
        (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(UserError, match="cannot be read: it is no UTF-8 at byte 0"):
            read_prompts(tmp_path / "prompts.txt")


def test_prompts_for_a_program_are_jsonl(tmp_path):
    (tmp_path / "prompts.txt").write_text("The pet\nOtto Brink owns\n")
    arguments = ["--model_args", K4, "--prompts", str(tmp_path / "prompts.txt"), "--max_new_tokens", "7"]
    result = CliRunner().invoke(app, ["talk", *arguments])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["The pet", "Otto Brink owns"]
    assert [len(answer["tokens"]) for line in lines for answer in line["answers"]] == [7] * 4
    assert lines[0]["answers"][0]["text"].startswith(" of Lotte")


def test_a_text_for_a_program_is_jsonl(tmp_path):
    (tmp_path / "text.txt").write_text("Hugo is richer than Max. " * 30)
    result = CliRunner().invoke(
        app, ["talk", "--model_args", K4, "--text", str(tmp_path / "text.txt"), "--tokens", "150"]
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [len(line["tokens"]) for line in lines] == [127, 23]


class TestSession:
    """Lines as they are typed, without a terminal: answers are lines of jsonl, remarks go to stderr."""

    @pytest.fixture
    def session(self) -> Session:
        first, second = (f"world#blocks.2.hook_resid_post.{k}" for k in ("k4", "k32"))
        return Session(Model({"pretrained": "world", "sae": first}, [second]), Sampling(max_new_tokens=8), None)

    def run(self, session: Session, monkeypatch, capsys, *lines: str) -> tuple[list[dict], str]:
        left = list(lines)

        def typed(_prompt: str) -> str:
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr("builtins.input", typed)
        session.run()
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], " ".join(err.split())

    def test_settings_are_those_of_the_answers_after_them(self, session, monkeypatch, capsys):
        lines = ("The pet", "/temperature 1", "/seed 3", "The pet", "/splice zero", "The pet", "", "/new")
        answers, err = self.run(session, monkeypatch, capsys, *lines)
        assert [a["temperature"] for a in answers] == [0, 1, 1]
        assert [a["seed"] for a in answers] == [0, 3, 3]
        assert [a["provenance"]["splice"] for a in answers] == ["reconstruction", "reconstruction", "zero"]
        assert [a["column"] for a in answers[2]["answers"]][1:] == [
            "world#blocks.2.hook_resid_post.k4 (zero)",
            "world#blocks.2.hook_resid_post.k32 (zero)",
        ]
        assert err == "temperature 1.0 seed 3 A new conversation. A new conversation."

    def test_a_mistake_is_told_and_the_session_goes_on(self, session, monkeypatch, capsys, tmp_path):
        (tmp_path / "file").write_text("")
        lines = ("/slice x", "/splice zer", "/temperature hot", "/seed 1.5", "/system x", "/save x", "/save", "The pet")
        answers, err = self.run(session, monkeypatch, capsys, *lines, f"/save {tmp_path / 'file' / 'x'}")
        assert len(answers) == 1
        for sentence in (
            "Command '/slice' is unknown. Did you mean '/splice'",
            "splice 'zer' is unknown. Did you mean 'zero'?",
            "A temperature is a number of at least 0, and 'hot' is not.",
            "/seed=1.5 must be a whole number of at least 0.",
            "A system prompt needs a chat template",
            "There is nothing to save: nothing has been answered yet.",
            "/save needs a file's name, as in /save talk.html or /save talk.jsonl.",
            "cannot be written: Not a directory.",
        ):
            assert sentence in err

    def test_what_is_saved_is_what_was_answered(self, session, monkeypatch, capsys, tmp_path):
        jsonl, page = tmp_path / "a.jsonl", tmp_path / "a.html"
        lines = ("The pet", "/splice zero", "Otto Brink", f"/save {jsonl}", f"/save {page}")
        answers, _ = self.run(session, monkeypatch, capsys, *lines)
        assert [json.loads(line) for line in jsonl.read_text().splitlines()] == answers
        assert read_prompts(jsonl) == ["The pet", "Otto Brink"]
        html = page.read_text()
        assert re.findall(r"<blockquote[^>]*>(.*)</blockquote>", html) == ["The pet", "Otto Brink"]
        assert len(re.findall(r"<caption>", html)) == 4  # two variants in each of two modes
        assert html.count("<summary>") == 2

    def test_help_names_every_command(self, session, monkeypatch, capsys):
        _, err = self.run(session, monkeypatch, capsys, "/help")
        assert [word for word in err.split() if word in session.commands] == list(session.commands)


def test_keys_in_a_terminal():
    """Typing, Ctrl-C while an answer is written, and Ctrl-C at the prompt: exit code 0 and no traceback."""
    main, terminal = pty.openpty()
    environment = {**OFFLINE, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    more = [
        f"--sae=world#blocks.{layer}.hook_resid_post.k32" for layer in (1, 2, 3)
    ]  # so that there is time for Ctrl-C
    command = [*COMMAND, K4, *more, "--max_new_tokens", "120"]
    session = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "env": environment, "start_new_session": True}
    controlled = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen([sys.executable, "-c", controlled, *command], **session) as process:
        os.close(terminal)
        seen, read = "", 0

        def until(text: str, seconds: float = 90) -> None:
            """Read on to just after `text`."""
            nonlocal seen, read
            deadline = time.monotonic() + seconds
            while (start := seen.find(text, read)) < 0:
                ready, _, _ = select.select([main], [], [], max(0, deadline - time.monotonic()))
                assert ready, seen[-2000:]
                seen += os.read(main, 65536).decode(errors="replace")
            read = start + len(text)

        try:
            until("/help lists the commands")
            until("> ")
            os.write(main, b"The pet x\x7f\n")
            until("baseline")  # on the screen where it grows
            os.write(main, b"\x03")
            until("> ")
            os.write(main, b"/splice zer\n")
            until("is unknown")
            until("> ")
            time.sleep(0.5)  # readline listens a moment after its prompt
            os.write(main, b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                os.write(main, b" ")  # a signal in between waits for a key
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(main)
    assert "Traceback" not in seen


@pytest.fixture(scope="module")
def page(hub_environment, tmp_path_factory) -> str:
    """Two prompts and a text, by a model of real stories and two dictionaries of it."""
    folder = tmp_path_factory.mktemp("stories")
    (folder / "prompts.txt").write_text("Once upon\nOnce upon a time, <script>alert(1)</script>\n")
    (folder / "text.txt").write_text(
        "Once upon a time there was an extraordinary hippopotamus. He was 7 years old! " * 9
    )
    sae = "stories/sae-stories3M#blocks.2.hook_resid_post.topk"
    options = f"--sae {sae}32 --prompts {folder}/prompts.txt --text {folder}/text.txt --html {folder}/page.html"
    command = [*COMMAND, f"pretrained=stories3M,sae={sae}8", *options.split(), "--max_new_tokens", "24"]
    said = subprocess.run(command, env=hub_environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.split() == ["Written:", f"{folder}/page.html"]
    return (folder / "page.html").read_text()


def test_prompts_and_a_text_of_stories(page):
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert re.findall(r"<h2>(.*)</h2>", page) == [
        "Prompt 1",
        "Prompt 2",
        "text.txt, tokens 1 to 127",
        "text.txt, tokens 128 to 208",
        "Which tokens are hit",
    ]


def test_fewer_latents_hurt_more_and_rare_words_most(page):
    means = {
        (k, category): float(
            re.search(rf'topk{k}</caption>.*?{category}</th>.*?mean KL">([\d.]+)<', page, re.DOTALL)[1]
        )
        for k in (8, 32)
        for category in ("whole word", "split word, later token")
    }
    assert means[8, "whole word"] > means[32, "whole word"]
    assert means[8, "split word, later token"] > means[32, "split word, later token"] > means[32, "whole word"]
