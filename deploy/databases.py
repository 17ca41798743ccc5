"""The platform's databases on a PostgreSQL server: for Airflow, MLflow, sweeps, and the log.

python -m deploy.databases      makes those that are not there; the URL is TRAILWATCH_POSTGRES
"""

from __future__ import annotations

import os
import sys
from typing import Final
from urllib.parse import urlsplit, urlunsplit

AIRFLOW: Final = "trailwatch_airflow"
MLFLOW: Final = "trailwatch_mlflow"
SWEEPS: Final = "trailwatch_sweeps"
LOG: Final = "trailwatch_log"
"""Of the prediction log, of drift's state and of the ledger of promotions."""
NAMES: Final = (AIRFLOW, MLFLOW, SWEEPS, LOG)

_CANNOT: Final = 2


def url_of(server: str, database: str, driver: str = "") -> str:
    """The server's URL, for a database ("" for that which it names) and a driver of SQLAlchemy."""
    scheme = f"postgresql+{driver}" if driver else "postgresql"
    parts = urlsplit(server)
    return urlunsplit(
        (scheme, parts.netloc, f"/{database}" if database else parts.path, parts.query, "")
    )


def create(server: str) -> list[str]:
    """Make the databases that a server lacks; returns their names.

    Raises:
        psycopg.Error: the server cannot be asked, or its user may not make databases.
    """
    import psycopg
    from psycopg import sql

    made = []
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
        rows = connection.execute("SELECT datname FROM pg_database").fetchall()
        for name in set(NAMES) - {row[0] for row in rows}:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            made.append(name)
    return sorted(made)


def main() -> int:
    """Make them; 2 where that cannot succeed by trying again."""
    import psycopg

    try:
        made = create(os.environ["TRAILWATCH_POSTGRES"])
    except psycopg.errors.InsufficientPrivilege:
        print(
            f"the user of TRAILWATCH_POSTGRES may not make databases; make {', '.join(NAMES)} "
            "for it, or let it (ALTER ROLE ... CREATEDB)",
            file=sys.stderr,
        )
        return _CANNOT
    except psycopg.Error as error:
        print(f"PostgreSQL: {error}", file=sys.stderr)
        return 1
    print(f"made {', '.join(made)}" if made else "all databases are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
