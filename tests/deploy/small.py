"""A supervisor of small services, as a process: `python small.py FOLDER SERVICES-AS-JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.services import Health, Service
from deploy.supervisor import Supervisor, locked


def main(folder: Path, described: list[dict]) -> None:
    services = [
        Service(
            name=one["name"],
            image="ml",
            command=(sys.executable, "-c", one["code"]),
            needs=tuple(one.get("needs", ())),
            health=Health("port", f"127.0.0.1:{one['port']}") if "port" in one else None,
        )
        for one in described
    ]
    with locked(folder):
        Supervisor(folder, services, folder).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
