"""psycopg 3 against a cluster: binding, prepared statements, pipeline, COPY, notifications, large objects of rows."""

import threading

import psycopg

with psycopg.connect(channel_binding="require") as connection:
    assert connection.pgconn.ssl_in_use
    cursor = connection.cursor()
    assert cursor.execute("select session_user").fetchone() == (connection.info.user,)
    cursor.execute("create temporary table measured (id int, name text, at timestamptz)")
    with cursor.copy("copy measured (id, name) from stdin") as copy:
        for number in range(5000):
            copy.write_row((number, f"name {number}"))
    assert cursor.execute("select count(*), max(id) from measured").fetchone() == (5000, 4999)
    for number in range(20):
        row = cursor.execute("select name from measured where id = %s", (number,), prepare=True).fetchone()
        assert row == (f"name {number}",)
    with connection.pipeline():
        results = [connection.execute("select %s::int", (number,)) for number in range(200)]
    assert [result.fetchone()[0] for result in results] == list(range(200))
    with cursor.copy("copy measured to stdout") as copy:
        assert sum(1 for _ in copy.rows()) == 5000
    connection.rollback()

with psycopg.connect(autocommit=True) as listener, psycopg.connect(autocommit=True) as speaker:
    listener.execute("listen psycopg_news")
    speaker.execute("notify psycopg_news, 'hello'")
    heard = next(listener.notifies(timeout=10))
    assert heard.payload == "hello"

with psycopg.connect(autocommit=True) as connection:
    # Over TLS, as libpq 17 can; older ones send the key in plaintext, which the gateway drops.
    threading.Timer(0.5, connection.cancel_safe).start()
    try:
        connection.execute("select pg_sleep(30)")
        raise AssertionError("the statement was not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    assert connection.execute("select 1").fetchone() == (1,)

print("psycopg ok")
