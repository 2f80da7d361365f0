"""A site's page for its staff, attacked: guessed passwords, guessed names, planted and stolen cookies, forms of other
pages, and documents whose names are scripts, headers or paths.

What each attack wants is a session, a stopped run, or a script in a custodian's browser. It gets none of them, and the
code of the refusal stands in the audit log.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fakes.governance import LATER, NOW, key, member
from fakes.governed_sites import GovernedSite
from fakes.staff import CHEAP, ORIGIN, PASSWORDS, Answer, Browser, StaffedSite
from msfl.gateway.home import Home, write
from msfl.gateway.page.forms import MOST_BYTES
from msfl.gateway.staff.accounts import Role
from msfl.gateway.staff.lockout import FREE_PER_ACCOUNT, Failures, failed, lock
from msfl.gateway.staff.passwords import Compared, Passwords
from msfl.gateway.staff.sessions import IDLE, LIFE, csrf_token
from msfl.policies.documents import SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.policies.refusals import Code

RUN, PARKED = "20261201-171500-1a2b3c4d", "20261201-174000-5e6f7a8b"


@pytest.fixture(scope="module")
def staffed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gateway's folder, made once: one run runs, one waits for the custodian, and staff have accounts."""
    site = GovernedSite(tmp_path_factory.mktemp("site"))
    assert site.hear(site.papers()) == []
    assert site.offer(RUN) == "allow"
    site.sign_policy(4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    assert site.offer(PARKED) == "confirm"
    StaffedSite(site.home).close()
    site.close()
    return site.home.root


@pytest.fixture
def page(staffed: Path, tmp_path: Path) -> Iterator[StaffedSite]:
    shutil.copytree(staffed, tmp_path / "gateway")
    page = StaffedSite(Home(tmp_path / "gateway"))
    yield page
    page.close()


def logged_in(page: StaffedSite, name: str = "cleo") -> Browser:
    browser = page.browser()
    assert browser.log_in(name).status == 303
    return browser


def is_out(answer: Answer) -> bool:
    """No session came with it, and nothing of the site is in it but its name."""
    return "set-cookie" not in dict(answer.headers) and RUN not in answer.body and PARKED not in answer.body


def nothing_done(page: StaffedSite) -> bool:
    """Neither run has heard a word."""
    said = [
        page.home.stop_asked(RUN),
        page.home.declined(RUN),
        page.home.stop_asked(PARKED),
        page.home.declined(PARKED),
    ]
    return said == [None] * 4 and page.entries("staff stops") == page.entries("staff refuses") == []


# ------------------------------------------------------------------------------------------------ guessed passwords


def test_guessing_a_password_ends_in_a_lock_that_outlives_a_restart(page: StaffedSite) -> None:
    guesser = page.browser("10.0.0.9")
    answers = [guesser.log_in("cleo", f"guess number {n}").status for n in range(8)]
    assert answers == [401] * 5 + [429] * 3
    page.restart()
    guesser = page.browser("10.0.0.9")
    answer = guesser.log_in("cleo")
    assert answer.status == 429
    assert is_out(answer)
    assert page.codes("staff login failed") == [Code.LOGIN_REFUSED] * 5
    assert page.codes("staff login locked") == [Code.LOGIN_LOCKED]


def test_a_day_of_guessing_is_a_hundred_guesses() -> None:
    failures, tried = Failures(), 0
    for second in range(24 * 60 * 60):
        now = NOW + timedelta(seconds=second)
        if lock(failures, FREE_PER_ACCOUNT, now) is None:
            failures, tried = failed(failures, now), tried + 1
    assert tried <= 110


def test_one_password_tried_on_many_names_locks_the_address_and_nobody_elses(page: StaffedSite) -> None:
    sprayer = page.browser("10.0.0.9")
    statuses = [sprayer.log_in(f"person{n}", "Winter2026 is here!").status for n in range(25)]
    assert statuses == [401] * 20 + [429] * 5
    assert sprayer.log_in("cleo").status == 429
    assert page.browser("10.0.0.8").log_in("cleo").status == 303
    page.desk.unlock_address("10.0.0.9", "ida")
    assert sprayer.log_in("cleo").status == 303


def test_many_addresses_of_one_ipv6_network_are_one(page: StaffedSite) -> None:
    statuses = [page.browser(f"2001:db8:1:2::{n:x}").log_in(f"person{n}", "wrong").status for n in range(25)]
    assert statuses.count(429) == 5


def test_an_own_account_does_not_wash_an_address_clean(page: StaffedSite) -> None:
    insider = page.browser("10.0.0.9")
    statuses = []
    for n in range(25):
        statuses.append(insider.log_in(f"person{n}", "wrong").status)
        if n % 4 == 3:
            insider.log_in("vera")
    assert 429 in statuses


def test_a_forwarded_address_is_nobodys_word(page: StaffedSite) -> None:
    headers = {"x-forwarded-for": "10.0.0.1", "forwarded": "for=10.0.0.1", "x-real-ip": "10.0.0.1"}
    guesser = page.browser("10.0.0.9")
    guesser.post("/login", headers, name="cleo", password="wrong", token=None)
    assert [e.fields["address"] for e in page.entries("staff login failed")] == ["10.0.0.9"]


def test_setting_the_clock_back_does_not_end_a_lock(page: StaffedSite) -> None:
    for n in range(5):
        page.desk.log_in("cleo", f"guess {n}", "10.0.0.9")
    page.later(days=-2)
    assert page.browser().log_in("cleo").status == 429
    page.later(minutes=15)
    assert page.browser().log_in("cleo").status == 303


def test_guesses_at_the_same_time_are_all_counted_before_any_is_looked_at(page: StaffedSite) -> None:
    """While one password is looked at, a hundred others come in: none of them gets past the count."""
    seen: list[str] = []

    class Slow(Passwords):
        def compare(self, hash: str | None, password: str) -> Compared:
            seen.append(password)
            if len(seen) < 40:
                page.desk.log_in("cleo", f"guess {len(seen)}", "10.0.0.9")
            return super().compare(hash, password)

    page.desk._passwords = Slow(CHEAP)
    page.desk.log_in("cleo", "guess 0", "10.0.0.9")
    assert len(seen) == 5


# ------------------------------------------------------------------------------------------------------ guessed names


def test_by_their_text_nobody_can_tell_a_name_that_is_no_account(page: StaffedSite) -> None:
    page.desk.lock_account("vera", "ida")
    page.desk.invite("nora", Role.VIEWER, "ida")
    rounds: list[list[tuple[int, str, tuple[tuple[str, str], ...]]]] = []
    for name in ("cleo", "vera", "nora", "nobody", "<script>", "../cleo", "", "cleo\x00"):
        guesser = page.browser(f"10.0.{len(rounds)}.1")
        rounds.append([(a.status, a.body, a.headers) for a in (guesser.log_in(name, f"guess {n}") for n in range(7))])
    assert all(answers == rounds[0] for answers in rounds)
    assert [status for status, _, _ in rounds[0]] == [401] * 5 + [429] * 2


def test_by_their_time_neither_every_name_costs_one_look_at_one_hash(page: StaffedSite) -> None:
    page.desk.lock_account("vera", "ida")
    page.desk.invite("nora", Role.VIEWER, "ida")
    looked: list[str] = []

    class Counting(Passwords):
        def compare(self, hash: str | None, password: str) -> Compared:
            looked.append((hash or self._nobodys).rpartition("$")[0].rpartition("$")[0])
            return super().compare(hash, password)

    page.desk._passwords = Counting(CHEAP)
    for name in ("cleo", "vera", "nora", "nobody", "<script>", ""):
        page.browser().log_in(name, "wrong")
    assert looked == ["$argon2id$v=19$m=8,t=1,p=1"] * 6


def test_what_is_typed_as_a_name_is_written_nowhere(page: StaffedSite) -> None:
    """People type their password there."""
    page.browser().log_in("my secret kettle 77", "cleo")
    assert [e.object for e in page.entries("staff login failed")] == ["unknown"]
    assert b"secret kettle" not in page.everything_written()


# ------------------------------------------------------------------------------------------ default, weak, blank ones


def test_there_is_no_account_but_those_that_were_made(page: StaffedSite) -> None:
    for n, name in enumerate(("admin", "root", "msfl", "administrator", "site-a", "guest")):
        for password in ("", "admin", "msfl", "password", "changeme"):
            assert is_out(page.browser(f"10.0.{n}.1").log_in(name, password))


def test_a_password_is_kept_nowhere(page: StaffedSite) -> None:
    browser = logged_in(page)
    browser.log_in("vera", "another secret that is wrong")
    everything = page.everything_written()
    for secret in (*PASSWORDS.values(), "another secret that is wrong", browser.cookies["msfl"]):
        assert secret.encode() not in everything


# ------------------------------------------------------------------------------------------------------- invitations

NEW = "seven lamps under brown water"


def accepted(page: StaffedSite, name: str, code: str, address: str = "10.0.0.9") -> int:
    return page.browser(address).post("/setup", name=name, code=code, new=NEW, again=NEW, token=None).status


def test_an_invitation_serves_once_for_one_name_and_for_a_day(page: StaffedSite) -> None:
    code, _ = page.desk.invite("vera", None, "ida")
    assert accepted(page, "cleo", code) == 401
    assert accepted(page, "vera", code) == 303
    assert accepted(page, "vera", code) == 401
    late, _ = page.desk.invite("vera", None, "ida")
    page.later(days=1)
    assert accepted(page, "vera", late) == 401
    assert page.codes("staff login failed") == [Code.LOGIN_REFUSED] * 3


def test_an_invitation_is_void_after_a_newer_one_a_new_password_a_lock_and_a_removal(page: StaffedSite) -> None:
    old, _ = page.desk.invite("vera", None, "ida")
    newer, _ = page.desk.invite("vera", None, "ida")
    assert accepted(page, "vera", old) == 401
    page.desk.set_password("vera", NEW, "ida")
    assert accepted(page, "vera", newer) == 401
    locked, _ = page.desk.invite("vera", None, "ida")
    page.desk.lock_account("vera", "ida")
    assert accepted(page, "vera", locked) == 401
    page.desk.remove("vera", "ida")
    page.desk.add("vera", Role.VIEWER, NEW, "ida")
    assert accepted(page, "vera", locked) == 401


def test_guessing_codes_is_counted_like_guessing_passwords(page: StaffedSite) -> None:
    page.desk.invite("vera", None, "ida")
    for name in ("vera", "cleo", "nobody"):
        address = f"10.0.0.{len(name)}"
        assert [accepted(page, name, f"{n:032x}", address) for n in range(7)] == [401] * 5 + [429] * 2
        assert page.desk.log_in(name, "anything", address).code is Code.LOGIN_LOCKED  # type: ignore[union-attr]


def test_who_has_not_set_a_password_yet_has_none(page: StaffedSite) -> None:
    page.desk.invite("nora", Role.VIEWER, "ida")
    for password in ("", "nora", "None", "$argon2id$"):
        assert is_out(page.browser().log_in("nora", password))


def test_a_code_is_kept_nowhere_and_another_page_cannot_use_it(page: StaffedSite) -> None:
    code, _ = page.desk.invite("vera", None, "ida")
    everything = page.everything_written()
    assert code.encode() not in everything
    assert code.replace("-", "").encode() not in everything
    fields = {"name": "vera", "code": code, "new": NEW, "again": NEW, "token": None}
    assert is_out(page.browser().post("/setup", {"origin": "https://evil.example"}, **fields))
    assert page.codes("staff request refused") == [Code.REQUEST_FORGED]
    assert accepted(page, "vera", code) == 303


# --------------------------------------------------------------------------------------------------- planted, stolen


def test_a_planted_session_is_never_logged_in(page: StaffedSite) -> None:
    """Fixation: the attacker's id, from an own log-in or made up, is in the victim's browser before the log-in."""
    attacker, victim = logged_in(page, "vera"), page.browser()
    for planted in (attacker.cookies["msfl"], "ab" * 32):
        victim.cookies = {"msfl": planted}
        assert victim.log_in("cleo").status == 303
        assert victim.cookies["msfl"] != planted
        attacker.cookies = {"msfl": planted}
        assert is_out(attacker.get("/"))


def test_each_log_in_has_another_id(page: StaffedSite) -> None:
    assert len({logged_in(page).cookies["msfl"] for _ in range(5)}) == 5


@pytest.mark.parametrize("seconds", [IDLE.total_seconds(), LIFE.total_seconds()])
def test_a_stolen_cookie_is_worth_nothing_once_the_session_is_over(page: StaffedSite, seconds: float) -> None:
    browser = logged_in(page)
    thief = page.browser("10.6.6.6")
    thief.cookies = dict(browser.cookies)
    page.later(seconds=seconds)
    answer = thief.post(f"/runs/{RUN}/stop", sure="yes", token=csrf_token(thief.cookies["msfl"]))
    assert answer.status == 401
    assert is_out(answer)
    assert nothing_done(page)


def test_a_session_kept_busy_ends_all_the_same(page: StaffedSite) -> None:
    browser = logged_in(page)
    for _ in range(int(LIFE / IDLE) * 2):
        assert browser.get("/").status == 200
        page.later(seconds=IDLE.total_seconds() / 2)
    assert browser.get("/").status == 401


def test_a_cookie_that_was_logged_out_is_worth_nothing(page: StaffedSite) -> None:
    browser = logged_in(page)
    stolen = dict(browser.cookies)
    assert browser.post("/logout").status == 303
    assert browser.cookies == {}
    browser.cookies = stolen
    assert is_out(browser.get("/"))


def test_the_book_of_sessions_opens_none(page: StaffedSite) -> None:
    """Who reads the gateway's folder has hashes of ids."""
    logged_in(page)
    ((key,),) = page.book._tables.ask("SELECT key FROM sessions")
    thief = page.browser()
    thief.cookies = {"msfl": str(key)}
    assert is_out(thief.get("/"))


@pytest.mark.parametrize("cookie", ["", "x", "a" * 64, "a" * 70000, "é", "'; DROP TABLE sessions; --", "%00"])
def test_a_made_up_cookie_opens_nothing(page: StaffedSite, cookie: str) -> None:
    thief = page.browser()
    thief.cookies = {"msfl": cookie}
    assert is_out(thief.get("/"))


@pytest.mark.parametrize(
    ("origin", "name"), [(ORIGIN, "msfl"), ("https://page.site-a.example", "__Host-msfl")], ids=["loopback", "tls"]
)
def test_the_cookie_is_for_this_page_alone(page: StaffedSite, origin: str, name: str) -> None:
    page.origins = (origin,)
    page.restart()
    answer = page.browser().log_in("cleo")
    cookie = answer.header("set-cookie")
    assert cookie.startswith(f"{name}=")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
    assert ("Secure" in cookie) == origin.startswith("https")
    assert ("strict-transport-security" in dict(answer.headers)) == origin.startswith("https")
    assert "domain" not in cookie.lower()


# ------------------------------------------------------------------------------------------- forms of other pages


ELSEWHERE = [
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "https://evil.example", "sec-fetch-site": None},
    {"origin": None, "sec-fetch-site": "cross-site"},
    {"origin": ORIGIN, "sec-fetch-site": "same-site"},
    {"origin": "null", "sec-fetch-site": None},
    {"origin": "http://127.0.0.1:9999", "sec-fetch-site": None},
    {"origin": "https://127.0.0.1:8780", "sec-fetch-site": None},
    {"origin": f"{ORIGIN}.evil.example", "sec-fetch-site": None},
    {"origin": None, "sec-fetch-site": None},
    {"content-type": "text/plain"},
    {"content-type": "application/json"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": None},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_a_form_of_another_page_does_nothing_even_with_cookie_and_token(
    page: StaffedSite, headers: dict[str, str | None]
) -> None:
    browser = logged_in(page)
    for path in (f"/runs/{RUN}/stop", f"/runs/{PARKED}/refuse", "/logout"):
        assert browser.post(path, headers, sure="yes").status == 403
    assert nothing_done(page)
    assert page.codes("staff request refused") == [Code.REQUEST_FORGED] * 3
    assert browser.get("/").status == 200


def test_a_form_without_this_sessions_token_does_nothing(page: StaffedSite) -> None:
    browser, other = logged_in(page), logged_in(page, "vera")
    for token in (None, "", "0" * 64, csrf_token(other.cookies["msfl"]), "ü"):
        assert browser.post(f"/runs/{RUN}/stop", sure="yes", token=token).status == 403
    assert nothing_done(page)
    assert page.codes("staff request refused") == [Code.REQUEST_FORGED] * 5


def test_another_page_cannot_log_somebody_in(page: StaffedSite) -> None:
    """Else a custodian works in the attacker's account, and tells it what they type."""
    browser = page.browser()
    answer = browser.post(
        "/login", {"origin": "https://evil.example"}, name="vera", password=PASSWORDS["vera"], token=None
    )
    assert answer.status == 403
    assert is_out(answer)
    assert page.codes("staff request refused") == [Code.REQUEST_FORGED]


def test_strangers_do_not_fill_the_audit_log_with_forged_requests(page: StaffedSite) -> None:
    before = len(page.entries())
    for _ in range(30):
        page.browser("10.0.0.9").post(f"/runs/{RUN}/stop", {"origin": "https://evil.example"}, token=None)
    assert len(page.entries()) == before + 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_no_link_and_no_other_method_changes_anything(page: StaffedSite, method: str) -> None:
    browser = logged_in(page)
    before = len(page.entries())
    for path in (f"/runs/{RUN}/stop", f"/runs/{PARKED}/refuse", "/logout", "/", "/login"):
        browser.send(method, path, {"sec-fetch-site": "cross-site", "origin": "https://evil.example"})
    assert nothing_done(page)
    assert len(page.entries()) == before
    assert browser.get("/").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8780", "127.0.0.1:8780.evil.example", "127.0.0.1", "", None]
)
def test_a_foreign_name_that_points_here_is_not_answered(page: StaffedSite, host: str | None) -> None:
    """DNS rebinding: to the browser the attacker's page and this one are then the same origin."""
    browser = logged_in(page)
    for path in ("/", "/login", "/style.css"):
        answer = browser.get(path, {"host": host})
        assert answer.status == 421
        assert is_out(answer)
    body = f"token={csrf_token(browser.cookies['msfl'])}&sure=yes".encode()
    headers = {"host": host, "origin": f"http://{host}"}
    assert browser.send("POST", f"/runs/{RUN}/stop", headers, body).status == 421
    assert nothing_done(page)


@pytest.mark.parametrize(
    "body",
    [b"sure=yes&sure=yes", b"&&&", b"\xff\xfe", b"sure=%ff", b"a=1&" * 40, b"x=" + b"y" * MOST_BYTES, b"%", b""],
    ids=["twice", "empty", "bytes", "utf-8", "many", "long", "percent", "none"],
)
def test_a_form_that_is_none_is_refused(page: StaffedSite, body: bytes) -> None:
    browser = logged_in(page)
    token = f"&token={csrf_token(browser.cookies['msfl'])}".encode()
    for sent in (body, body + token):
        assert browser.send("POST", f"/runs/{RUN}/stop", body=sent).status in (400, 403)
    assert nothing_done(page)


# ------------------------------------------------------------------------------------------------- more than allowed


def test_a_viewer_sees_and_does_nothing(page: StaffedSite) -> None:
    vera = logged_in(page, "vera")
    assert f'action="/runs/{RUN}/stop"' not in vera.get(f"/runs/{RUN}").body
    for path in (f"/runs/{RUN}/stop", f"/runs/{PARKED}/refuse"):
        assert vera.post(path, sure="yes").status == 403
    assert nothing_done(page)
    assert page.codes("staff request refused") == [Code.NOT_A_CUSTODIAN] * 2


def test_who_is_taken_out_of_the_site_root_is_no_custodian_any_more(page: StaffedSite) -> None:
    cleo = logged_in(page)
    following = SiteRoot(site="site-a", version=2, custodians=(member("dora"),), threshold=1, expires=LATER)
    write(page.home.site_root_file, sign(encode(following), SITE_ROOT, [key("cleo"), key("dora")]))
    assert cleo.post(f"/runs/{RUN}/stop", sure="yes").status == 403
    assert nothing_done(page)
    assert page.codes("staff request refused") == [Code.NOT_A_CUSTODIAN]


def test_nothing_here_confirms_a_run(page: StaffedSite) -> None:
    cleo = logged_in(page)
    for path in (f"/runs/{PARKED}/confirm", f"/runs/{PARKED}", "/confirm"):
        assert cleo.post(path, sure="yes").status in (404, 405)
    assert page.home.confirmed(PARKED) is None


@pytest.mark.parametrize("path", ["/", f"/runs/{RUN}", f"/runs/{PARKED}", "/password", "/runs/nothing"])
def test_without_a_session_there_is_nothing_to_see(page: StaffedSite, path: str) -> None:
    answer = page.browser().get(path)
    assert answer.status == 303
    assert answer.header("location") == "/login"
    assert is_out(answer)


# --------------------------------------------------------------------- what others wrote: scripts, headers, paths

SCRIPT = "<script>alert(1)</script>"
EVIL = [SCRIPT, '"><img src=x onerror=alert(1)>', "'onmouseover='alert(1)", "{{ 7 * 7 }}", "x\r\nset-cookie: msfl=evil"]


@pytest.mark.parametrize("evil", EVIL)
def test_scripts_in_what_others_wrote_are_text(page: StaffedSite, evil: str) -> None:
    """The run's name from the centre, the job's and the user's from whoever wrote them, names in the audit log."""
    name = evil.replace("/", "%2f")
    for file in (page.home.root / f"pending/{PARKED}.json", page.home.run_folder(RUN) / "papers.json"):
        papers = json.loads(file.read_bytes())
        if "asked" in papers:
            papers["asked"] |= {"publisher": "paul", "leaves": [evil]}
            write(page.home.root / f"pending/{name}.json", json.dumps(papers).encode())
        else:
            papers["user"] |= {"email": evil, "organisation": evil}
        write(file, json.dumps(papers).encode())
    for action, fields in (
        ("run decided", {"verdict": "allow", "release": evil, "user": evil}),
        ("task begins", {"task": evil, "verb": evil, "round": evil}),
        ("result leaves", {"task": evil, "bytes": "10", "fields": evil, "withheld": evil, "blake3": evil}),
        ("custodian stops the run", {"by": evil}),
    ):
        page.audit.write(page.now, action, RUN, fields)
        page.audit.write(page.now, action, evil, fields)
    cleo = logged_in(page)
    pages = [cleo.get(path) for path in ("/", f"/runs/{RUN}", f"/runs/{PARKED}", f"/runs/{name}")]
    assert [answer.status for answer in pages] == [200] * 4
    for answer in pages:
        assert "<script" not in answer.body
        assert "<img" not in answer.body
        assert "'onmouseover" not in answer.body
        assert answer.header("content-security-policy").startswith("default-src 'none'; style-src 'self';")
        assert "set-cookie" not in dict(answer.headers)
    if "7 * 7" in evil:
        assert "{{ 7 * 7 }}" in pages[1].body


def test_a_site_with_a_script_for_a_name_shows_a_name(page: StaffedSite) -> None:
    """Also where nobody has logged in."""
    settings = json.loads((page.home.root / "site.json").read_bytes())
    write(page.home.root / "site.json", json.dumps(settings | {"site": SCRIPT}).encode())
    page.restart()
    for answer in (page.browser().get("/login"), page.browser().log_in(SCRIPT, SCRIPT)):
        assert SCRIPT not in answer.body
        assert "&lt;script&gt;" in answer.body


def test_what_is_typed_does_not_come_back(page: StaffedSite) -> None:
    for browser in (page.browser(), logged_in(page)):
        for path in (f"/runs/{SCRIPT}", f"/{SCRIPT}", f"/login{SCRIPT}"):
            assert SCRIPT not in browser.get(path).body


@pytest.mark.parametrize("name", ["a\r\nlocation: http://evil.example", "x; set-cookie: a=b", "//evil.example", "a b"])
def test_a_runs_name_gets_into_no_header(page: StaffedSite, name: str) -> None:
    folder = page.home.runs / name.replace("/", "")
    folder.mkdir()
    write(folder / "state.json", (page.home.run_folder(RUN) / "state.json").read_bytes())
    answer = logged_in(page).post(f"/runs/{folder.name}/stop", sure="yes")
    assert answer.status == 303
    assert answer.header("location").startswith("/runs/")
    assert {name for name, _ in answer.headers} >= {"location", "content-security-policy"}
    assert not any(c in value for _, value in answer.headers for c in "\r\n")
    assert "set-cookie" not in dict(answer.headers)


@pytest.mark.parametrize(
    "run",
    [
        "..",
        ".",
        "../..",
        "%2e%2e",
        "..%2f..",
        "../../etc/passwd",
        "/etc/passwd",
        "\x00",
        f"{RUN}\x00",
        "-rf",
        "",
        f"{RUN}/..",
    ],
)
def test_a_runs_name_is_no_path(page: StaffedSite, run: str, tmp_path: Path) -> None:
    cleo = logged_in(page)
    before = {f for f in tmp_path.rglob("*") if "audit" not in f.parts and "staff" not in f.parts}
    assert cleo.get(f"/runs/{run}").status in (404, 307)
    for word in ("stop", "refuse"):
        assert cleo.post(f"/runs/{run}/{word}", sure="yes").status in (404, 405, 409)
    assert {f for f in tmp_path.rglob("*") if "audit" not in f.parts and "staff" not in f.parts} == before
    assert nothing_done(page)


def test_nothing_comes_from_elsewhere_and_nothing_runs(page: StaffedSite) -> None:
    cleo = logged_in(page)
    for path in ("/", f"/runs/{RUN}", f"/runs/{PARKED}", "/password", "/nothing"):
        answer = cleo.get(path)
        assert "<script" not in answer.body
        assert "http:" not in answer.body
        assert "https:" not in answer.body
        assert " style=" not in answer.body
        assert answer.header("x-frame-options") == "DENY"
        assert answer.header("cache-control") == "no-store"
    assert "@import" not in (css := cleo.get("/style.css").body)
    assert "url(" not in css


# ------------------------------------------------------------------------------------------------- and what is right


def test_a_custodian_stops_one_run_and_refuses_another(page: StaffedSite) -> None:
    """The way in that all of the above is not: the same requests, from the page itself."""
    cleo = logged_in(page)
    assert cleo.post(f"/runs/{RUN}/stop").status == 400
    assert nothing_done(page)
    assert cleo.post(f"/runs/{RUN}/stop", sure="yes").status == 303
    assert cleo.post(f"/runs/{PARKED}/refuse").status == 303
    assert page.home.stop_asked(RUN) == page.home.declined(PARKED) == {"by": "cleo"}
    assert [(e.object, e.fields["by"]) for e in page.entries("staff stops") + page.entries("staff refuses")] == [
        (RUN, "cleo"),
        (PARKED, "cleo"),
    ]
    assert Role.CUSTODIAN.value in cleo.get("/").body
