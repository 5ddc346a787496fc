"""Does what README and SPEC.md say hold? Their code runs, their tables are the code's numbers."""

import math
import re
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from dcodec import container, positions
from dcodec.profiles import profile

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SPEC = (ROOT / "dcodec" / "SPEC.md").read_text()


def test_readme_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first Python block of README runs as it stands, from the project's folder (test_diffusers.py runs the second)."""
    block, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_readme_has_the_two_commands_that_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "for command in install test" in script
    for command in ("install", "test"):
        assert re.search(rf"<!-- {command} -->\n```sh\n[^\n]+\n```", README)


def test_readme_commands_exist() -> None:
    """Every `dcodec` command that README shows is one that --help knows, with its options."""
    @cache
    def told(command: str) -> str:
        asked = [sys.executable, "-m", "dcodec.cli", command, "--help"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    for line in re.findall(r"^dcodec (.*?)(?:\s+#.*)?$", README, re.M):
        command, *rest = line.split()
        assert all(option in told(command) for option in rest if option.startswith("--")), line


@pytest.mark.parametrize(("column", "preset"), [(1, "fast"), (2, "psc"), (3, "whole")])
def test_spec_table_is_the_profile(column: int, preset: str) -> None:
    table = [[c.strip() for c in line.strip("|").split("|")] for line in SPEC.splitlines() if line.startswith("| ")]
    said = {row[0]: row[column] for row in table[1:]}
    fields = asdict(profile(preset, 7))
    assert fields.pop("name") == preset
    assert set(said) == set(fields)
    names = {"rows": 7, "True": True, "False": False}
    for name, text in said.items():
        value = names[text] if text in names else eval(text.replace("^", "**"))
        assert math.isclose(value, fields[name], rel_tol=1e-15), name


def test_spec_order_is_that_of_the_positions() -> None:
    (told,) = re.findall(r"ORDER = ((?:\d ){7}\d)", SPEC)
    assert tuple(map(int, told.split())) == positions.ORDER


def test_spec_header_is_the_struct() -> None:
    sizes = {"char": 1, "uint8_t": 1, "uint16_t": 2}
    parts = SPEC.split("struct dcx_second_part")
    told = [re.findall(r"^    (char|uint8_t|uint16_t)\s+\w+(?:\[(\d)\])?;", part, re.M) for part in parts]
    first, second = (sum(sizes[kind] * int(count or 1) for kind, count in fields) for fields in told)
    assert first == container.HEADER_SIZE
    native = container.second_part(machine=b"abcd")
    assert len(container.second_part(b"abcd", "x")) > second == len(native) + 1
    assert f"header, {container.HEADER_SIZE} bytes" in SPEC
    assert f"version {container.VERSION}" in SPEC
