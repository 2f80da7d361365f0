"""A site's staff: accounts, locks after wrong passwords, sessions, and what of it stands in the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from argon2 import Parameters, PasswordHasher, Type

from fakes.governance import LATER, NOW, key, member
from fakes.staff import CHEAP, PASSWORDS, StaffedSite
from msfl.gateway.home import Home, SiteSettings, write
from msfl.gateway.staff.accounts import Role, is_name, weakness
from msfl.gateway.staff.desk import INVITED_FOR, Visitor
from msfl.gateway.staff.lockout import FORGOTTEN, LONGEST, Failures, Locked, failed, lock, seen
from msfl.gateway.staff.passwords import Passwords
from msfl.gateway.staff.sessions import IDLE, LIFE, Session, csrf_token, fits, key_of, new_id, over
from msfl.policies.documents import SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.policies.refusals import CannotProceed, Code, Refusal, Refused

GOOD = "seven lamps under brown water"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[StaffedSite]:
    home = Home(tmp_path / "gateway")
    home.write_settings(SiteSettings("site-a", "demo", "127.0.0.1:1", "registry"))
    root = SiteRoot(site="site-a", version=1, custodians=(member("cleo"),), threshold=1, expires=LATER)
    write(home.site_root_file, sign(encode(root), SITE_ROOT, [key("cleo")]))
    site = StaffedSite(home)
    yield site
    site.close()


def enter(site: StaffedSite, name: str = "cleo", password: str = "", address: str = "10.0.0.1") -> Visitor | Refusal:
    return site.desk.log_in(name, password or PASSWORDS[name], address)


def code(found: Visitor | Refusal) -> str:
    return found.code.value if isinstance(found, Refusal) else "in"


def inside(found: Visitor | Refusal) -> Visitor:
    assert isinstance(found, Visitor), found
    return found


# ------------------------------------------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    "password",
    ["short", "elevenchars", "password1234", "qwertyuiop123", "aaaaaaaaaaaaaaaa", "123456789012", "x" * 129],
)
def test_short_known_and_endless_passwords_are_not_taken(password: str) -> None:
    refusal = weakness(password, "cleo", "site-a")
    assert refusal is not None
    assert refusal.code is Code.PASSWORD_WEAK
    assert password not in refusal.message


@pytest.mark.parametrize(
    "password",
    [
        "purple cleo! hat stand",
        "C-L-E-O purple hat stand",
        "my site-a lamp kettle",
        "mySiteA lamp kettle",
        "MSFL lamp kettle blue",
    ],
)
def test_names_of_the_person_the_site_and_the_product_are_no_part_of_a_password(password: str) -> None:
    assert weakness(password, "cleo", "site-a") is not None


def test_parts_of_a_long_name_count_and_short_ones_do_not() -> None:
    assert weakness("lamp kettle stein brown", "c.stein@uni.example", "site-a") is not None
    assert weakness("a tin kettle in brown water", "c.stein@uni.example", "site-a") is None


@pytest.mark.parametrize("password", [GOOD, "Kühe grasen über Moos!", "ключ под синим ковром", *PASSWORDS.values()])
def test_words_that_have_nothing_to_do_with_each_other_are_taken(password: str) -> None:
    assert weakness(password, "cleo", "site-a") is None


def test_the_same_password_from_another_keyboard_is_the_same() -> None:
    passwords = Passwords(CHEAP)
    composed, decomposed = "\u00fcber den Wolken hängt Tee", "u\u0308ber den Wolken ha\u0308ngt Tee"
    assert passwords.compare(passwords.hash(composed), decomposed).right


def test_the_hash_is_argon2id_with_the_parameters_of_rfc_9106() -> None:
    assert Passwords().hash(GOOD).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_nobodys_hash_fits_no_password_and_a_broken_one_fits_none_either() -> None:
    passwords = Passwords(CHEAP)
    assert not passwords.compare(None, "").right
    assert not passwords.compare("$argon2id$broken", GOOD).right


def test_names_are_those_of_site_roots() -> None:
    assert all(is_name(name) for name in ("cleo", "c.stein@uni.example"))
    assert not any(is_name(name) for name in ("", "Cleo", "cleo stein", "<b>", "cleo\n", "../cleo", "a" * 129))


# ---------------------------------------------------------------------------------------------------------- locks


def after(count: int, ago: timedelta = timedelta(0)) -> Failures:
    return Failures(count, NOW - ago)


@pytest.mark.parametrize(
    ("count", "seconds"), [(0, 0), (4, 0), (5, 30), (6, 60), (7, 120), (9, 480), (10, 900), (10**6, 900)]
)
def test_each_failure_doubles_the_wait_up_to_a_quarter_of_an_hour(count: int, seconds: int) -> None:
    locked = lock(after(count), 5, NOW)
    assert locked == (Locked(NOW + timedelta(seconds=seconds)) if seconds else None)
    assert lock(after(count, ago=timedelta(seconds=seconds)), 5, NOW) is None


def test_a_day_later_nothing_is_left_of_it() -> None:
    assert failed(after(9, ago=FORGOTTEN), NOW) == Failures(1, NOW)
    assert failed(after(9, ago=FORGOTTEN - timedelta(seconds=1)), NOW) == Failures(10, NOW)


@pytest.mark.parametrize("back", [timedelta(minutes=1), timedelta(days=400)])
def test_a_clock_that_went_back_neither_ends_a_lock_nor_makes_it_longer_than_any(back: timedelta) -> None:
    then = seen(after(8), NOW - back)
    assert then.count == 8
    locked = lock(then, 5, NOW - back)
    assert locked is not None
    assert locked.until - (NOW - back) <= LONGEST


# ------------------------------------------------------------------------------------------------------- sessions


def test_a_session_is_over_when_idle_when_old_and_when_the_clock_goes_behind_it() -> None:
    session = Session("k", "cleo", "p", NOW, NOW + timedelta(hours=1))
    now = session.seen
    assert over(session, now + IDLE - timedelta(seconds=1)) is None
    assert over(session, now + IDLE) is not None
    assert over(Session("k", "cleo", "p", NOW, NOW + LIFE), NOW + LIFE) is not None
    assert over(session, NOW - timedelta(minutes=2)) is not None


def test_only_what_we_made_is_an_id_and_its_key_does_not_show_it() -> None:
    id = new_id(bytes(range(32)))
    assert key_of(id) not in (None, id)
    assert [key_of(bad) for bad in ("", id[:-1], id.upper(), id + "0", "g" * 64, id + "\n")] == [None] * 6


def test_a_forms_token_fits_its_own_session_alone() -> None:
    mine, other = new_id(b"a" * 32), new_id(b"b" * 32)
    assert fits(mine, csrf_token(mine))
    assert not any(fits(mine, bad) for bad in (csrf_token(other), "", mine, "ü"))


# ----------------------------------------------------------------------------------------------------------- desk


def test_a_name_and_its_password_open_a_session_and_a_log_out_ends_it(site: StaffedSite) -> None:
    visitor = inside(enter(site))
    assert inside(site.desk.who(visitor.session)).account.role is Role.CUSTODIAN
    site.desk.log_out(visitor)
    assert code(site.desk.who(visitor.session)) == Code.SESSION_OVER
    assert [e.action for e in site.entries()][-2:] == ["staff logged in", "staff logged out"]


def test_capital_letters_and_blanks_round_a_name_do_not_matter(site: StaffedSite) -> None:
    assert code(site.desk.log_in(" Cleo ", PASSWORDS["cleo"], "10.0.0.1")) == "in"


def test_failures_are_forgotten_with_the_right_password(site: StaffedSite) -> None:
    for _ in range(3):
        assert [code(enter(site, password="wrong")) for _ in range(4)] == [Code.LOGIN_REFUSED] * 4
        assert code(enter(site)) == "in"
    assert site.codes("staff login failed") == [Code.LOGIN_REFUSED] * 12


def test_a_lock_holds_for_the_right_password_too_and_ends_when_it_said(site: StaffedSite) -> None:
    assert [code(enter(site, password="wrong")) for _ in range(5)] == [Code.LOGIN_REFUSED] * 5
    refusal = enter(site)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.LOGIN_LOCKED
    assert refusal.fields["until"] == "2026-12-01T12:00:30Z"
    site.later(seconds=30)
    assert code(enter(site)) == "in"


def test_trying_on_while_locked_keeps_nobody_out_for_longer_and_fills_no_log(site: StaffedSite) -> None:
    for _ in range(50):
        enter(site, password="wrong")
    assert len(site.codes("staff login failed")) == 5
    assert site.codes("staff login locked") == [Code.LOGIN_LOCKED]
    site.later(seconds=30)
    assert code(enter(site)) == "in"


def test_an_old_hash_is_made_anew_at_the_next_log_in(site: StaffedSite) -> None:
    weaker = PasswordHasher.from_parameters(Parameters(Type.ID, 19, 16, 32, 2, 8, 1)).hash(PASSWORDS["cleo"])
    account = site.book.account("cleo")
    assert account is not None
    site.book.set_password(account, weaker)
    assert code(enter(site)) == "in"
    account = site.book.account("cleo")
    assert account is not None
    assert "t=1" in account.password
    assert code(enter(site)) == "in"
    assert len(site.entries("staff password hashed anew")) == 1


def test_who_locks_an_account_while_its_hash_is_made_anew_is_not_undone(site: StaffedSite) -> None:
    account = site.book.account("cleo")
    assert account is not None
    site.desk.lock_account("cleo", "ida")
    site.book.set_password(account, "another")
    assert [a.locked for a in site.book.accounts()] == [True, False]


def test_all_sessions_end_with_a_new_password_a_lock_and_a_removal(site: StaffedSite) -> None:
    first, second = inside(enter(site)), inside(enter(site))
    site.desk.set_password("cleo", GOOD, "ida")
    assert [code(site.desk.who(v.session)) for v in (first, second)] == [Code.SESSION_OVER] * 2
    third = inside(enter(site, password=GOOD))
    site.desk.lock_account("cleo", "ida")
    assert code(site.desk.who(third.session)) == Code.SESSION_OVER
    assert code(enter(site, password=GOOD)) == Code.LOGIN_REFUSED
    site.desk.unlock_account("cleo", "ida")
    assert code(site.desk.who(third.session)) == Code.SESSION_OVER
    fourth = inside(enter(site, password=GOOD))
    site.desk.remove("cleo", "ida")
    assert code(site.desk.who(fourth.session)) == Code.SESSION_OVER
    site.desk.add("cleo", Role.VIEWER, GOOD, "ida")
    assert code(site.desk.who(fourth.session)) == Code.SESSION_OVER


def test_who_changes_the_own_password_stays_logged_in_here_and_nowhere_else(site: StaffedSite) -> None:
    here, elsewhere = inside(enter(site)), inside(enter(site))
    assert code(site.desk.change_own(here, "wrong", GOOD, "10.0.0.1")) == Code.LOGIN_REFUSED
    assert code(site.desk.change_own(here, PASSWORDS["cleo"], "cleo" * 5, "10.0.0.1")) == Code.PASSWORD_WEAK
    assert code(site.desk.who(here.session)) == "in"
    again = inside(site.desk.change_own(here, PASSWORDS["cleo"], GOOD, "10.0.0.1"))
    assert [code(site.desk.who(v.session)) for v in (again, here, elsewhere)] == ["in"] + [Code.SESSION_OVER] * 2


def test_accounts_are_made_once_and_only_with_a_good_name_and_password(site: StaffedSite) -> None:
    with pytest.raises(CannotProceed, match="there is an account cleo"):
        site.desk.add("cleo", Role.VIEWER, GOOD, "ida")
    with pytest.raises(CannotProceed, match="no name of a person"):
        site.desk.add("<script>", Role.VIEWER, GOOD, "ida")
    with pytest.raises(Refused, match="password_weak"):
        site.desk.add("nora", Role.VIEWER, "password1234", "ida")
    with pytest.raises(CannotProceed, match="there is no account nora"):
        site.desk.lock_account("nora", "ida")
    assert [a.name for a in site.desk.accounts()] == ["cleo", "vera"]


def test_every_change_of_an_account_stands_in_the_audit_log_with_who_made_it(site: StaffedSite) -> None:
    site.desk.set_role("vera", Role.CUSTODIAN, "ida")
    site.desk.set_password("vera", GOOD, "ida")
    site.desk.lock_account("vera", "ida")
    site.desk.unlock_account("vera", "ida")
    site.desk.remove("vera", "ida")
    said = [(e.action.removeprefix("staff "), e.fields["by"]) for e in site.entries() if e.object == "vera"]
    words = [
        "account added",
        "account changed",
        "password changed",
        "account locked",
        "account unlocked",
        "account removed",
    ]
    assert said == [(word, "ida") for word in words]


def test_an_invited_person_sets_the_password_and_nobody_else_knows_it(site: StaffedSite) -> None:
    code_, until = site.desk.invite("nora", Role.VIEWER, "ida")
    assert until == NOW + INVITED_FOR
    assert code(site.desk.log_in("nora", "", "10.0.0.1")) == Code.LOGIN_REFUSED
    visitor = inside(site.desk.accept(" Nora ", code_.upper().replace("-", " "), GOOD, "10.0.0.1"))
    assert inside(site.desk.who(visitor.session)).account.name == "nora"
    assert code(site.desk.log_in("nora", GOOD, "10.0.0.1")) == "in"
    said = [(e.action, e.fields["by"]) for e in site.entries() if e.object == "nora" and "by" in e.fields]
    assert said == [("staff invited", "ida"), ("staff password changed", "nora")]


def test_an_invitation_of_one_who_has_a_password_changes_nothing_until_it_is_used(site: StaffedSite) -> None:
    code_, _ = site.desk.invite("cleo", None, "ida")
    before = inside(enter(site))
    assert code(site.desk.accept("cleo", code_, "password1234", "10.0.0.1")) == Code.PASSWORD_WEAK
    assert code(site.desk.accept("cleo", code_, GOOD, "10.0.0.1")) == "in"
    assert code(site.desk.who(before.session)) == Code.SESSION_OVER
    assert code(enter(site)) == Code.LOGIN_REFUSED
    assert [a.role for a in site.desk.accounts() if a.name == "cleo"] == [Role.CUSTODIAN]


def test_who_is_invited_has_a_name_and_a_role(site: StaffedSite) -> None:
    with pytest.raises(CannotProceed, match="say which --role"):
        site.desk.invite("nora", None, "ida")
    with pytest.raises(CannotProceed, match="no name of a person"):
        site.desk.invite("<script>", Role.VIEWER, "ida")


def test_what_counts_for_nothing_any_more_goes(site: StaffedSite) -> None:
    enter(site)
    site.desk.log_in("nobody", "wrong", "10.0.0.2")
    site.later(days=1)
    enter(site, "vera")
    tables = site.book._tables
    assert tables.ask("SELECT account FROM sessions") == [("vera",)]
    assert tables.ask("SELECT what FROM failures") == []
