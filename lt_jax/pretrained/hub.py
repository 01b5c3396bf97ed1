"""Files from the Hugging Face hub, through huggingface-hub (the extra ``hub``).

It keeps a cache (``HF_HOME``), resumes broken downloads and obeys ``HF_HUB_OFFLINE``
and ``HF_ENDPOINT``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lt_jax.errors import InputError


def endpoint() -> str:
    """Return the address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def fetch(repository: str, file: str, revision: str = "", sha256: str = "") -> Path:
    """Return the path of a file in the hub's cache; download it if it is not there.

    ``repository`` is OWNER/NAME, ``revision`` a commit, branch or tag. If ``sha256`` is
    given, a cached file with this hash serves, whatever its commit.
    """
    url = f"{endpoint()}/{repository}/resolve/{revision or 'main'}/{file}"
    remedy = (
        f"download {url} elsewhere and pass the file: --weights FILE (lt-jax fit and "
        "features), or init.path=FILE"
    )
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"hf:{repository} needs huggingface-hub: pip install 'lt_jax[hub]', or "
            + remedy
        ) from error
    download = huggingface_hub.hf_hub_download  # loads the client, which sets levels
    # It warns of every retry; only the last failure needs a message.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if sha256:  # the cache names the content of a large file by its hash
        commits = f"models--{repository.replace('/', '--')}/snapshots/*/{file}"
        for path in sorted(Path(huggingface_hub.constants.HF_HUB_CACHE).glob(commits)):
            if path.is_symlink() and path.readlink().name == sha256 and path.exists():
                return path
    try:
        return Path(download(repository, file, revision=revision or None))
    except Exception as error:  # whose class depends on the version of the hub
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = first.partition(". ")[0].rstrip(".")
        raise InputError(
            f"cannot fetch hf:{repository}: {reason}. Or {remedy}"
        ) from error
