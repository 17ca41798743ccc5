"""A task: one command of the ML environment, called by path, in a fresh process.

The ML environment is `TRAILWATCH_ML_BIN`, the folder of its programs. The process gets the
variables that it needs and none of Airflow's own, which hold secrets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from trailwatch.graph import HOME

RUNS = "pipelines.runs"
SKIPPED = 99
"""Exit status of a command that has nothing to do."""
HANDED_ON = ("TRAILWATCH_", "MLFLOW_", "DVC_", "AWS_", "GOOGLE_", "AZURE_", "CUDA_", "NVIDIA_")
NAMES = frozenset({"HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME", "SSL_CERT_FILE"})
WITHHELD = ("AIRFLOW", "TRAILWATCH_ALERT")
FROM_MONITOR = frozenset({"episode", "manual", "reason", "request", "requested_us"})
"""What the monitor notes in a run's conf beside its params."""
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


class Command(BaseOperator):
    """Run `python -m MODULE WORDS --run ID --dag DAG`; its last line is what the task returns.

    Args:
        module: module of the project.
        words: arguments before those that name the run.
        options: constants that are handed on as `--options` together with the run's params; None
            for a command that takes none.
    """

    template_fields: Sequence[str] = ()

    def __init__(
        self,
        *,
        words: Sequence[str] = (),
        module: str = RUNS,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.module, self.words = module, list(words)
        self.options = None if options is None else dict(options)
        self.hook: SubprocessHook | None = None

    def execute(self, context: Any) -> str:
        """Run it.

        Raises:
            AirflowSkipException: there is nothing to do; says why.
            AirflowFailException: the run was given a param that its DAG does not have.
            AirflowException: it failed; says why.
        """
        if self.options is not None:
            self._refuse_unknown(context["params"])
        self.hook = SubprocessHook()
        done = self.hook.run_command(
            [python(), "-m", self.module, *self.arguments(context)],
            env=environment(os.environ),
            cwd=str(HOME),
        )
        if done.exit_code == SKIPPED:
            raise AirflowSkipException(done.output)
        if done.exit_code:
            raise AirflowException(done.output or f"ended with status {done.exit_code}")
        return str(done.output)

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        """Airflow checks the params that a DAG has, and takes any other name for nothing: a
        misspelled `promotion` would promote.
        """
        known = sorted(self.dag.params)
        unknown = sorted(set(given) - set(known) - FROM_MONITOR)
        if unknown:
            raise AirflowFailException(
                f"{self.dag_id} has no param {', '.join(unknown)}; it has {', '.join(known)}"
            )

    def arguments(self, context: Any) -> list[str]:
        """Arguments of the command."""
        words = [*self.words, "--run", context["run_id"], "--dag", self.dag_id]
        if self.module == RUNS:
            # Airflow has given up whatever attempt of this run may still be alive.
            words.append("--take-over")
        if self.options is not None:
            words += ["--options", json.dumps({**dict(context["params"]), **self.options})]
        return words

    def on_kill(self) -> None:
        """End the command, and what it started, when the task is stopped."""
        if self.hook is not None:
            self.hook.send_sigterm()


def python() -> str:
    """The ML environment's interpreter."""
    folder = os.environ.get("TRAILWATCH_ML_BIN") or str(HOME / ".venv" / "bin")
    return str(Path(folder) / "python")


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What of an environment a command gets."""
    kept = {
        name: value
        for name, value in given.items()
        if (name in NAMES or name.startswith(HANDED_ON))
        and not any(word in name for word in WITHHELD)
    }
    path = f"{Path(python()).parent}:{given.get('PATH', DEFAULT_PATH)}"
    return {"TRAILWATCH_HOME": str(HOME), **kept, "PATH": path}
