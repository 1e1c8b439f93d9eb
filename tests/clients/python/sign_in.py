"""psycopg signs in with whatever the environment holds, and says who it is and what libpq it has."""

import psycopg

with psycopg.connect() as connection:
    (user,) = connection.execute("select session_user").fetchone()
    print(f"signed in as {user} by libpq {psycopg.pq.version()}")
