"""Writes the table of config groups into README.md; with --check says whether it is up to date."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rwkv.config.compose import groups  # noqa: E402

START, END = "<!-- groups: written by scripts/readme_groups.py -->\n", "<!-- /groups -->"


def table() -> str:
    """One row a group, the default option bold."""
    rows = ["| group | decides | options |", "|---|---|---|"]
    for name, group in groups().items():
        options = ", ".join(f"**{o}**" if o == group.default else o for o in group.options) or "-"
        rows.append(f"| `{name}` | {group.about} | {options} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, rest = text.split(START)
    _, tail = rest.split(END)
    wanted = head + START + table() + END + tail
    if "--check" in sys.argv:
        return int(text != wanted)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
