"""What a run made, for others: DVC's cache pushed, dvc.lock on a branch of the home repository.

`git merge runs/<dag>/<run>` and `dvc checkout` in the home take a run over; nothing is merged by
itself, so a person's checkout never moves under their feet.
"""

from __future__ import annotations

from pipelines import runspace, snapshot
from pipelines.progress import say
from pipelines.runspace import Run, RunError

_MADE = ("dvc.lock", "data.dvc", "metrics.json")


def publish(run: Run) -> str:
    """Commit and push what the run made; returns the commit. Repeating it changes nothing.

    Raises:
        RunError: the remote or the home repository cannot be reached.
    """
    runspace.configure(run)  # the remote may have been corrected since
    made = [name for name in _MADE if (run.workspace / name).exists()]
    run.commit(f"Run {run.dag} {run.id}", *made)
    commit = run.git("rev-parse", "HEAD")
    try:
        # Data before what points to them: a branch that is there can be checked out.
        run.dvc("push")
    except RunError as error:
        raise RunError(f"the DVC remote ({_remote(run)}) did not take the data: {error}") from error
    run.git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{run.branch}")
    run.note(
        published=commit,
        finished=snapshot.fingerprint(run),
    )
    say(f"publish: branch {run.branch} is {commit[:12]}")
    return commit


def _remote(run: Run) -> str:
    """Name and place of the remote, without what may be a password."""
    from dvc.config import Config

    settings = Config(dvc_dir=str(run.workspace / ".dvc"))
    name = str(settings["core"].get("remote", ""))
    url = str(settings["remote"].get(name, {}).get("url", ""))
    return f"{name} {url.split('@')[-1]}".strip() or "none is configured"
