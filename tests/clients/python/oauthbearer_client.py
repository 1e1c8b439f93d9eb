"""libpq 18 signs in by OAUTHBEARER: its own code speaks, and this program hands it the token that it asks for.

The hook is libpq's `PQsetAuthDataHook` (PostgreSQL 18, libpq-oauth): what an application sets that gets its tokens itself.
"""

import ctypes
import glob
import os

import psycopg
import psycopg_binary

assert psycopg.pq.version() >= 180000, psycopg.pq.version()
folder = os.path.join(os.path.dirname(os.path.dirname(psycopg_binary.__file__)), "psycopg_binary.libs")
(library,) = glob.glob(os.path.join(folder, "libpq-*.so*"))
# The same library that psycopg has loaded, not another copy of it.
libpq = ctypes.CDLL(library)

PQAUTHDATA_OAUTH_BEARER_TOKEN = 1


class Request(ctypes.Structure):
    """`PGoauthBearerRequest`, up to the token."""

    _fields_ = [
        ("openid_configuration", ctypes.c_char_p),
        ("scope", ctypes.c_char_p),
        ("run", ctypes.c_void_p),
        ("cleanup", ctypes.c_void_p),
        ("token", ctypes.c_char_p),
        ("user", ctypes.c_void_p),
    ]


asked = []
# What libpq was given must outlive the call.
kept = []


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def hook(kind: int, _connection: int, data: int) -> int:
    if kind != PQAUTHDATA_OAUTH_BEARER_TOKEN:
        return 0
    request = Request.from_address(data)
    asked.append((request.openid_configuration or b"").decode())
    token = os.environ["TOKEN"].encode()
    kept.append(token)
    request.token = token
    return 1


libpq.PQsetAuthDataHook(hook)
try:
    with psycopg.connect(oauth_issuer=os.environ["ISSUER"], oauth_client_id=os.environ["CLIENT_ID"]) as connection:
        (user,) = connection.execute("select session_user").fetchone()
        print(f"signed in as {user}, token asked for {asked}")
except psycopg.OperationalError as error:
    raise SystemExit(str(error))
