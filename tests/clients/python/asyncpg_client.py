"""asyncpg against a cluster: binary protocol, pool, cursors, COPY and cancellation by timeout."""

import asyncio
import os
import ssl

import asyncpg


async def main() -> None:
    context = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
    settings = {
        "host": "localhost",
        "port": int(os.environ["PGPORT"]),
        "user": os.environ["PGUSER"],
        "password": os.environ["PGPASSWORD"],
        # asyncpg has no `options`; the cluster is named before the database.
        "database": f"{os.environ['CLUSTER']}.defaultdb",
        "ssl": context,
    }
    connection = await asyncpg.connect(**settings)
    assert await connection.fetchval("select $1::int + 1", 41) == 42
    rows = await connection.fetch("select generate_series(1, 1000) as number")
    assert [row["number"] for row in rows] == list(range(1, 1001))
    await connection.execute("create temporary table copied (number int)")
    await connection.copy_records_to_table("copied", records=[(number,) for number in range(1000)])
    assert await connection.fetchval("select sum(number) from copied") == 499500
    try:
        await connection.execute("select pg_sleep(30)", timeout=0.5)
        raise AssertionError("the statement was not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await connection.fetchval("select 1") == 1
    await connection.close()

    async with asyncpg.create_pool(min_size=2, max_size=8, **settings) as pool:
        answers = await asyncio.gather(*(pool.fetchval("select $1::int", number) for number in range(100)))
        assert answers == list(range(100))
    print("asyncpg ok")


asyncio.run(main())
