"""Paths as people write them."""

from pathlib import Path

from fastres.errors import UserError


def expand_home(path: str | Path) -> Path:
    """`path` with the home folder that a leading `~` or `~name` stands for: shells leave it in `--out=~/x` and in
    variables. Raises UserError where there is no such home, unless a file or folder has that name."""
    path = Path(path)
    if not path.parts or not path.parts[0].startswith("~"):
        return path
    try:
        return path.expanduser()
    except RuntimeError as error:
        user = path.parts[0][1:]
        if user and path.exists():
            return path
        who = f"there is no user {user}" if user else "HOME is not set, and this user has no name"
        raise UserError(f"{path} names no folder, as {who}: write the whole path") from error
