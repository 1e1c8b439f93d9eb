// node-postgres against a cluster: parameters, prepared statements, pool, notifications, errors.
'use strict'
const assert = require('node:assert')
const fs = require('node:fs')
const { Client, Pool } = require('pg')

const settings = {
  host: 'localhost',
  port: Number(process.env.PGPORT),
  user: process.env.PGUSER,
  password: process.env.PGPASSWORD,
  database: `${process.env.CLUSTER}.defaultdb`,
  enableChannelBinding: true,
  ssl: { ca: fs.readFileSync(process.env.PGSSLROOTCERT, 'utf8'), rejectUnauthorized: true },
}

async function main () {
  const client = new Client(settings)
  await client.connect()
  assert.strictEqual(client.connection.stream.getProtocol(), 'TLSv1.3')
  const sum = await client.query('select $1::int + $2::int as sum', [40, 2])
  assert.strictEqual(sum.rows[0].sum, 42)
  for (let number = 0; number < 5; number++) {
    const named = await client.query({ name: 'twice', text: 'select $1::int * 2 as twice', values: [number] })
    assert.strictEqual(named.rows[0].twice, number * 2)
  }
  await assert.rejects(client.query('select 1/0'), { code: '22012' })
  const large = await client.query("select repeat('x', 5000000) as text")
  assert.strictEqual(large.rows[0].text.length, 5000000)
  const heard = new Promise(resolve => client.once('notification', resolve))
  await client.query('listen node_news')
  await client.query("notify node_news, 'hello'")
  assert.strictEqual((await heard).payload, 'hello')
  await client.end()

  const pool = new Pool({ ...settings, max: 5 })
  const answers = await Promise.all([...Array(50).keys()].map(n => pool.query('select $1::int as n', [n])))
  assert.deepStrictEqual(answers.map(answer => answer.rows[0].n), [...Array(50).keys()])
  await pool.end()

  const wrong = new Client({ ...settings, password: 'wrong' })
  await assert.rejects(wrong.connect(), { code: '28P01' })
  console.log('node ok')
}

main().catch(error => { console.error(error); process.exit(1) })
