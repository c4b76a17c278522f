"""Tokens: made, kept as hashes, found in constant time, revoked without a restart."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from longhaul.errors import UserError
from longhaul.serving.http.tokens import Scope, TokenFile, TokenWatch, new_token


def test_a_token_is_found_by_its_secret_and_the_file_never_has_it(tmp_path) -> None:
    secret, entry = new_token("roof", ["predict"])
    path = tmp_path / "tokens.json"
    TokenFile().with_entry(entry).write(path)
    assert secret not in path.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["tokens.json"]
    assert TokenFile.read(path).find(secret) == entry
    assert TokenFile.read(path).find(secret[:-1]) is None
    assert TokenFile.read(path).find("\udcff") is None


def test_secrets_have_256_random_bits_and_differ() -> None:
    secrets = {new_token("a", ["predict"])[0] for _ in range(50)}
    assert len(secrets) == 50
    assert all(len(secret) == len("lh_") + 43 for secret in secrets)


def test_every_entry_is_compared_whichever_it_is(monkeypatch) -> None:
    made = [new_token(f"t{i}", ["predict"]) for i in range(5)]
    file = TokenFile(tokens=tuple(entry for _, entry in made))
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    for secret in (made[0][0], made[4][0], "none of them"):
        compared.clear()
        file.find(secret)
        assert len(compared) == 5


def test_a_token_is_revoked_while_the_file_is_watched(tmp_path) -> None:
    (first, one), (second, other) = new_token("one", ["predict"]), new_token("other", ["admin"])
    path = tmp_path / "tokens.json"
    TokenFile(tokens=(one, other)).write(path)
    watch = TokenWatch(path)
    assert watch.current().find(first) == one
    TokenFile.read(path).without("one").write(path)
    assert watch.current().find(first) is None
    assert watch.current().find(second) == other


def test_many_who_change_the_file_at_once_undo_nothing_of_each_other(tmp_path) -> None:
    path = tmp_path / "tokens.json"
    TokenFile(tokens=tuple(new_token(f"old{i}", ["predict"])[1] for i in range(8))).write(path)

    def change(i: int) -> None:
        _, entry = new_token(f"new{i}", ["predict"])
        TokenFile.change(path, lambda known: known.without(f"old{i}").with_entry(entry))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    assert {entry.name for entry in TokenFile.read(path).tokens} == {f"new{i}" for i in range(8)}


def test_a_change_waits_for_that_of_another_process(tmp_path) -> None:
    path, begun = tmp_path / "tokens.json", tmp_path / "begun"
    _, stays = new_token("stays", ["predict"])
    _, goes = new_token("goes", ["predict"])
    TokenFile(tokens=(stays, goes)).write(path)
    script = """
import sys
from pathlib import Path
from longhaul.serving.http.tokens import TokenFile

def changed(known):
    Path(sys.argv[2]).touch()
    sys.stdin.readline()
    return known.with_entry(known.tokens[0].model_copy(update={"name": "late"}))

TokenFile.change(Path(sys.argv[1]), changed)
"""
    other = subprocess.Popen([sys.executable, "-c", script, path, begun], stdin=subprocess.PIPE)
    assert other.stdin is not None
    while not begun.exists():
        assert other.poll() is None
        time.sleep(0.01)
    revoking = threading.Thread(target=TokenFile.change, args=(path, lambda known: known.without("goes")))
    revoking.start()
    revoking.join(0.2)
    other.communicate(b"\n")
    revoking.join()
    assert [entry.name for entry in TokenFile.read(path).tokens] == ["stays", "late"]


def test_what_a_link_leads_to_is_changed_and_the_link_stays(tmp_path) -> None:
    real, link = tmp_path / "secrets" / "tokens.json", tmp_path / "tokens.json"
    real.parent.mkdir()
    TokenFile().write(real)
    link.symlink_to(real)
    _, entry = new_token("one", ["predict"])
    TokenFile.change(link, lambda known: known.with_entry(entry))
    assert link.is_symlink()
    assert TokenFile.read(real).tokens == (entry,)


def test_what_another_user_laid_in_the_way_is_neither_followed_nor_written(tmp_path) -> None:
    path, foreign = tmp_path / "tokens.json", tmp_path / "foreign"
    foreign.write_text("untouched")
    for name in (f".tokens.json.{os.getpid()}.partial", ".tokens.json.lock"):
        (tmp_path / name).symlink_to(foreign)
    TokenFile().write(path)
    assert foreign.read_text() == "untouched"
    with pytest.raises(UserError, match="token file"):
        TokenFile.change(path, lambda known: known)
    assert foreign.read_text() == "untouched"


def test_a_change_makes_a_file_only_where_that_was_asked_for(tmp_path) -> None:
    path = tmp_path / "tokens.json"
    with pytest.raises(UserError, match="No such file"):
        TokenFile.change(path, lambda known: known)
    TokenFile.change(path, lambda known: known, create=True)
    assert TokenFile.read(path) == TokenFile()


def test_a_file_that_is_gone_or_damaged_opens_to_nobody(tmp_path) -> None:
    secret, entry = new_token("one", ["predict"])
    path = tmp_path / "tokens.json"
    TokenFile(tokens=(entry,)).write(path)
    watch = TokenWatch(path)
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(UserError, match="token file"):
            watch.current()
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        watch.current()
    TokenFile(tokens=(entry,)).write(path)
    assert watch.current().find(secret) == entry


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "token file"),
        ('{"tokens": [{"name": "a", "sha256": "abc", "scopes": ["predict"], "created": "2026-01-01"}]}', "tokens.0.sha256"),
        ('{"tokens": [{"name": "a", "sha256": "%s", "scopes": [], "created": "2026-01-01T00:00:00Z"}]}', "tokens.0.scopes"),
        ('{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["root"], "created": "2026-01-01T00:00:00Z"}]}', "scopes.0"),
    ],
)
def test_a_damaged_file_is_a_user_error_that_quotes_nothing(tmp_path, content, words) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content.replace("%s", "0" * 64))
    with pytest.raises(UserError, match=words) as refusal:
        TokenFile.read(path)
    assert "0" * 64 not in str(refusal.value)


def test_names_scopes_and_doubles_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="name cannot be 'a b'"):
        new_token("a b", ["predict"])
    with pytest.raises(UserError, match="Scopes: predict, admin"):
        new_token("a", ["root"])
    with pytest.raises(UserError, match="scopes"):
        new_token("a", [])
    _, entry = new_token("a", [Scope.ADMIN, "admin"])
    assert entry.scopes == (Scope.ADMIN,)
    with pytest.raises(UserError, match="there is one of that name"):
        TokenFile(tokens=(entry,)).with_entry(entry)
    with pytest.raises(UserError, match="There are: a"):
        TokenFile(tokens=(entry,)).without("b")
    with pytest.raises(UserError, match="folder that you can write"):
        TokenFile(tokens=(entry,)).write(tmp_path / "no" / "tokens.json")
