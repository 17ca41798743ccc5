"""The model that `make run` trained, as the first champion of the platform's own registry.

`make run` without a server registers beside the project, in a file; the platform's MLflow starts
empty. Where its model has no champion yet and the project has weights, they are registered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_DEFAULT_MODEL: Final = "trailwatch"


def has_champion(mlflow: str, model: str) -> bool:
    """Whether a model has a champion.

    Raises:
        OSError: the server does not answer as it should.
    """
    query = urlencode({"name": model, "alias": "champion"})
    url = f"{mlflow}/api/2.0/mlflow/registered-models/alias?{query}"
    try:
        with _DIRECT.open(url, timeout=30) as answer:
            return "model_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        said = json.loads(error.read() or b"{}").get("error_code", "")
        # An unknown model is one code, an unknown alias of a known model the other.
        if said in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def main() -> int:
    """Register where it is wanted; 0 also where there is nothing to register."""
    model, home = os.environ["TRAILWATCH_MODEL"], Path(os.environ["TRAILWATCH_HOME"])
    if has_champion(os.environ["MLFLOW_TRACKING_URI"], model):
        print(f"{model} has a champion")
        return 0
    folder = home if model == _DEFAULT_MODEL else home / "workspaces" / model
    if not (folder / "models" / "weights").is_dir():
        print(f"{model} has no champion, and {folder} no weights: the rules judge until a training")
        return 0
    # The registry keeps a bundle under its folder's name, and looks for it under this one.
    out = Path(os.environ["TRAILWATCH_STATE"]) / "platform" / "first" / "bundle"
    words = [sys.executable, "-m", "pipelines.register", "--out", str(out)]
    return subprocess.run(words, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
