// node-postgres signs in with a password, a token or a certificate, and says who it is.
'use strict'
const fs = require('node:fs')
const { Client } = require('pg')

const read = name => process.env[name] && fs.readFileSync(process.env[name], 'utf8')
const client = new Client({
  host: 'localhost',
  port: Number(process.env.PGPORT),
  user: process.env.PGUSER,
  password: process.env.PGPASSWORD,
  database: 'defaultdb',
  options: process.env.PGOPTIONS,
  ssl: { ca: read('PGSSLROOTCERT'), cert: read('PGSSLCERT'), key: read('PGSSLKEY') }
})

async function main () {
  await client.connect()
  const { rows } = await client.query('select session_user')
  console.log(`signed in as ${rows[0].session_user}`)
  await client.end()
}

main().catch(error => { console.error(error.code, error.message); process.exit(1) })
