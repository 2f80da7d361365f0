"""Is this request one of our own page's? Pure: headers in, a refusal out.

    every request   Host is one of ours
    POST            Sec-Fetch-Site is same-origin, Origin is ours: each where it is there, and one of them is
                    ▸ a form as browsers send it, at most 8 KiB, no field twice ▸ (`app`) the session's token

GET and HEAD change nothing. What is not said in a form's own encoding is not read: other encodings can be sent across
origins by a form, or need a script, and this page has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from msfl.policies.refusals import Code, Refusal, refuse

MOST_BYTES, MOST_FIELDS = 8 << 10, 16
_FORM = "application/x-www-form-urlencoded"


def host_is_ours(host: str, origins: tuple[str, ...]) -> bool:
    return host.lower() in {origin.partition("://")[2] for origin in origins}


def forged(headers: Mapping[str, str], origins: tuple[str, ...]) -> Refusal | None:
    """Whether a request that changes something may come from another page. Header names are in small letters."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    scheme = origins[0].partition("://")[0]
    ours = f"{scheme}://{headers.get('host', '').lower()}"
    if site is None and origin is None:
        return refuse(Code.REQUEST_FORGED, "The browser does not say which page this comes from.")
    if (site or "same-origin") != "same-origin" or (origin or ours) != ours:
        return refuse(Code.REQUEST_FORGED, "This was sent by another page.", origin=(origin or "")[:200])
    return None


def form(headers: Mapping[str, str], body: bytes) -> dict[str, str] | Refusal:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM or len(body) > MOST_BYTES:
        return refuse(Code.REQUEST_FORGED, "This is no form of this page.")
    try:
        text = body.decode("ascii")
        fields = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError:
        return refuse(Code.REQUEST_FORGED, "The form cannot be read.")
    if len(dict(fields)) != len(fields):
        return refuse(Code.REQUEST_FORGED, "The form has a field twice.")
    return dict(fields)
