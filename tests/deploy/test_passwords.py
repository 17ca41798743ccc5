from __future__ import annotations

import hashlib
import stat

import pytest

from deploy import passwords
from deploy.settings import DeployError
from serving.security import parse_keys


def test_secrets_are_made_once_for_their_owner_alone(tmp_path):
    made = passwords.load(tmp_path / "platform")
    path = tmp_path / "platform" / passwords.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(passwords.MADE) < set(made)
    assert all(len(secret) >= 32 for secret in made.values())
    assert passwords.load(tmp_path / "platform") == made


def test_no_two_secrets_and_no_two_platforms_share_one(tmp_path):
    one, other = (passwords.load(tmp_path / name) for name in ("one", "other"))
    every = [*one.values(), *other.values()]
    assert len(set(every)) == len(every)


def test_a_secret_that_a_newer_version_wants_is_added_and_others_stay(tmp_path):
    made = passwords.load(tmp_path)
    path = tmp_path / passwords.FILE
    path.write_text("".join(line for line in path.open() if not line.startswith("REDIS_PASSWORD")))
    again = passwords.load(tmp_path)
    assert again["REDIS_PASSWORD"] != made["REDIS_PASSWORD"]
    assert {**again, "REDIS_PASSWORD": ""} == {**made, "REDIS_PASSWORD": ""}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_others_may_read_is_refused(tmp_path):
    passwords.load(tmp_path)
    (tmp_path / passwords.FILE).chmod(0o644)
    with pytest.raises(DeployError, match="chmod 600"):
        passwords.load(tmp_path)


def test_serving_knows_the_key_by_its_entry(tmp_path):
    made = passwords.load(tmp_path)
    ((digest, caller),) = parse_keys(made["TRAILWATCH_API_KEY_ENTRY"])
    assert digest == hashlib.sha256(made["TRAILWATCH_API_KEY"].encode()).digest()
    assert caller.scopes == {"score", "read", "feedback", "admin"}
