"""The blocks of README.md and of the tutorials, run one after the other as they stand there.

    python scripts/first_hour.py [PAGE ...]

`sh scripts/first_hour.sh` does this in a fresh clone and environment. Each page has a folder of its own, which goes
afterwards. Python and YAML blocks are saved where the text or their first line names a file. A comment before a block
says what it needs that is not here:

    <!-- needs: network -->    (or a GPU) its commands go as far as parsing and planning: without a network each must
                               end in one sentence about what is missing; Python is compiled
    <!-- elsewhere: WHO -->    what runs it instead
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = (
    ROOT / "README.md",
    *(TUTORIALS / f"{name}.md" for name in ("first-table", "your-own-sae", "gemma-scope")),
    ROOT / "docs" / "paper.md",
)
MARK = r"(?:<!-- (needs|elsewhere): ([^\n]+?) -->\n+)?"
BLOCK = re.compile(MARK + r"^```(bash|python|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TYPED = "Tom saw\n"  # at the prompt of `talk`
SHOWN = 2000  # characters of what a command that failed printed
# What a sentence says where the hub and its cache do not have something, and which model of the hub's it names: of one
# that is not here, nobody can tell without a network whether it is misspelt.
HUB = re.compile(r"couldn't connect to 'https://|not in the local cache|cannot be reached|HF_HUB_OFFLINE")
MODEL = re.compile(r"There is no (?:causal language )?model '([^']+)'")
MODELS = ("gpt2", "google/gemma-2-2b")  # which pages name
FILE = re.compile(r"There is no (?:text file|folder) '([^']+)'")


@dataclass(frozen=True)
class Block:
    """A block of code of a page, what its mark says, and the text before it."""

    language: str
    code: str
    mark: str | None
    what: str | None
    before: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is: its first line is a comment with it, or the text before ends with it."""
        first = re.match(r"# (\S+\.(?:py|yaml))\n", self.code)
        names = re.findall(r"`([\w.-]+\.yaml)`", self.before[-300:]) if self.language == "yaml" else []
        return first[1] if first else (names[-1] if names else None)


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        mark, what, language, code = match.groups()
        yield Block(language, code, mark, what, text[: match.start()])


def commands_of(code: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(re.sub(r"(^|\s)#.*", "", line)))]


def command_line(words: Sequence[str]) -> list[str]:
    """Words with the commands of this interpreter's environment, whatever the PATH has."""
    if words[0] == "sae-lm-eval":
        return [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    if words[0] == "lm_eval":
        return [sys.executable, "-m", *words]
    return [sys.executable, *words[1:]] if words[0] == "python" else list(words)


def run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The command, whose output goes to the file behind `>` if there is one."""
    before, into = (words[: words.index(">")], words[-1]) if ">" in words else (words, None)
    done = subprocess.run(
        command_line(before), cwd=folder, env=environment, input=TYPED, capture_output=True, text=True, check=False
    )
    if into is not None:
        (folder / into).write_text(done.stdout, encoding="utf-8")
    return done


def failed(done: subprocess.CompletedProcess[str], words: Sequence[str], *, planned: bool) -> bool:
    """Whether a command did not do what it should; one that is only planned may end for want of what it needs."""
    if done.returncode == 0:
        return False
    last = " ".join(done.stderr.strip().splitlines()[-1:])
    return not (
        planned and done.returncode in (1, 2) and "Traceback" not in done.stderr and tells_of_missing(last, words)
    )


def tells_of_missing(sentence: str, words: Sequence[str]) -> bool:
    """Whether it is about the hub or its cache, or a text or a folder of the user's that the command names."""
    if "Did you mean" in sentence:
        return False
    if (file := FILE.search(sentence)) is not None:
        return file[1] in [word.rstrip("/") for word in words]
    model = MODEL.search(sentence)
    return HUB.search(sentence) is not None and (model is None or model[1] in MODELS)


def planned_words(words: Sequence[str]) -> list[str]:
    """A run is planned; other commands stop by themselves where the network ends."""
    asks = words[:2] == ["sae-lm-eval", "run"] and "--plan" not in words
    return [*words, "--plan"] if asks else list(words)


def do_block(block: Block, folder: Path, environment: Mapping[str, str]) -> bool:
    """Run a block in `folder`; whether all went well. Prints a line for each command."""
    planned = block.mark == "needs"
    if block.file is not None:
        (folder / block.file).write_text(block.code, encoding="utf-8")
        return True
    if block.language == "python":
        compile(block.code, "block", "exec")
        commands = [] if planned else [["python", "-c", block.code]]
    else:
        commands = commands_of(block.code) if block.language == "bash" else []
    for words in commands:
        begun = time.monotonic()
        done = run(planned_words(words) if planned else words, folder, environment)
        wrong = failed(done, words, planned=planned)
        shown = " ".join(words).partition("\n")[0]
        verdict = "FAILED" if wrong else (f"planned, needs {block.what}" if planned else "ok")
        print(f"  {verdict} ({time.monotonic() - begun:.0f} s): {shown}", flush=True)
        if wrong:
            print(done.stdout[-SHOWN:], done.stderr[-SHOWN:], sep="\n")
            return False
    return True


def do_page(page: Path, environment: Mapping[str, str]) -> bool:
    print(page.relative_to(ROOT), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "examples", folder / "examples")
        for block in blocks_of(page):
            if block.mark == "elsewhere":
                print(f"  run by {block.what}: {block.code.splitlines()[0]}")
            elif not do_block(block, folder, environment):
                return False
    return True


def main(pages: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        chosen = [Path(page).resolve() for page in pages] or PAGES
        wrong = [page for page in chosen if not do_page(page, environment)]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
