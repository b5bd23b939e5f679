"""Where compiled programs are kept: a folder of PyTorch's own compiled code.

PyTorch's function for it is in Inductor, which takes longer to import than a small model to load.
"""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`TORCHINDUCTOR_CACHE_DIR` or its default, and in it what is archc's."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(given or Path(tempfile.gettempdir(), f"torchinductor_{_user()}")) / "archc"


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container without a table of users
        name = f"uid_{os.getuid()}"
    return re.sub(r'[\\/:*?"<>|]', "_", name)
