"""Pictures of the demo's pages, to look at: wide, as on a phone, and dark.

    python scripts/screenshots.py out/demo            # writes out/demo/screenshots/
    python scripts/screenshots.py out/demo --readme   # also the picture of the README and the docs

Needs Chromium or Chrome on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DARK = "--blink-settings=preferredColorScheme=0"
WIDE, PHONE = (1280, 1600), (390, 844)
FIRST_SCREEN = (1280, 840)
PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "report.png"


def screenshot(page: Path, picture: Path, size: tuple[int, int], *options: str) -> None:
    """What `page` looks like in a window of `size` (width, height) in pixels."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"None of {', '.join(BROWSERS)} is on the PATH.")
    with tempfile.TemporaryDirectory() as folder:
        # No window is narrower than 500 pixels: a narrow page is a frame in a wider one.
        frame = Path(folder) / "frame.html"
        style = f"border:0;width:{size[0]}px;height:{size[1]}px"
        frame.write_text(f'<body style="margin:0"><iframe style="{style}" src="{page.resolve().as_uri()}"></iframe>')
        width = max(size[0], 500)
        command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={width},{size[1]}", f"--screenshot={picture.resolve()}", *options, frame.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the demo")
    parser.add_argument("--readme", action="store_true", help=f"also write {PICTURE.name} in docs/figures")
    arguments = parser.parse_args()
    pages = {"report": arguments.folder / "report" / "report.html", "talk": arguments.folder / "talk.html"}
    for page in pages.values():
        if not page.is_file():
            sys.exit(f"There is no {page}: run sae-lm-eval demo first.")
    out = arguments.folder / "screenshots"
    out.mkdir(exist_ok=True)
    for name, page in pages.items():
        for kind, size, options in (("wide", WIDE, ()), ("phone", PHONE, ()), ("dark", WIDE, (DARK,))):
            screenshot(page, out / f"{name}-{kind}.png", size, *options)
    if arguments.readme:
        screenshot(pages["report"], PICTURE, FIRST_SCREEN)


if __name__ == "__main__":
    main()
