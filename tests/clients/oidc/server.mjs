// A certified OpenID provider (the package oidc-provider) on loopback, with what tests need beside it: accounts by login
// name, key rotation, faults, counted requests, and JWTs of any content signed with its current key.
//
// Environment: ALG (RS256, ES256, PS256, EdDSA; RS256 by default). Prints one line of JSON with its issuer when it listens,
// and ends when its standard input does.
import crypto from 'node:crypto'
import http from 'node:http'
import * as jose from 'jose'
import Provider from 'oidc-provider'

const state = {
  accounts: {}, // login name -> claims; a login name that is not here has only `sub`
  clients: [], // as in dynamic client registration
  conform: false, // true: scopes' claims come only from userinfo, as OpenID Connect Core 5.4 has it
  counts: {}, // path -> requests
  faults: {}, // path or "*" -> "down" | "hang" | "huge" | "many" | "garbage" | "status" | {redirect: URL}
  maxAge: undefined // Cache-Control: max-age of the keys, in seconds
}
let alg = process.env.ALG || 'RS256'
let keys = [] // private JWKs, the newest first
let provider
let issuer

async function freshKey (name) {
  const { privateKey } = await jose.generateKeyPair(name, { extractable: true })
  const jwk = await jose.exportJWK(privateKey)
  return { ...jwk, kid: crypto.randomBytes(8).toString('hex'), alg: name, use: 'sig' }
}

function makeProvider () {
  provider = new Provider(issuer, {
    jwks: { keys },
    clients: state.clients.map(client => ({ id_token_signed_response_alg: alg, ...client })),
    cookies: { keys: ['only for tests'] },
    conformIdTokenClaims: state.conform,
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'], profile: ['name', 'preferred_username'] },
    scopes: ['openid', 'email', 'profile', 'groups'],
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
    features: { devInteractions: { enabled: true }, userinfo: { enabled: true } },
    pkce: { required: () => true },
    ttl: { AccessToken: 600, AuthorizationCode: 60, IdToken: 600, Interaction: 600, Session: 3600, Grant: 3600 },
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id, ...state.accounts[id] }) }),
    // Nobody is asked for consent: the form asks for the name and the password, and that is all.
    loadExistingGrant: async ctx => {
      const { client, session } = ctx.oidc
      const grant = new ctx.oidc.provider.Grant({ clientId: client.clientId, accountId: session.accountId })
      grant.addOIDCScope('openid email profile groups')
      await grant.save()
      return grant
    }
  })
}

function publicKeys () {
  return keys.map(({ d, p, q, dp, dq, qi, ...open }) => open)
}

// {claims, alg, kid, header, key}: `key` is "current", "old" (the one before), "fresh" (one that nobody publishes),
// "none" (no signature) or "public-as-hmac" (the public key in PEM as an HMAC secret). `kid` null leaves it out. The
// claims are signed as given: nothing is added, so that any of them can be missing.
async function mint ({ claims, alg: named, kid, header = {}, key = 'current' }) {
  const jwk = key === 'fresh' ? await freshKey(alg) : keys[key === 'old' ? 1 : 0]
  const protectedHeader = { alg: named ?? jwk.alg, typ: 'JWT', ...(kid === null ? {} : { kid: kid ?? keys[0].kid }), ...header }
  const encode = value => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
  const input = `${encode(protectedHeader)}.${encode(claims)}`
  if (key === 'none') return `${input}.`
  if (key === 'public-as-hmac') {
    const { d, p, q, dp, dq, qi, ...open } = jwk
    const pem = crypto.createPublicKey({ key: open, format: 'jwk' }).export({ type: 'spki', format: 'pem' })
    return `${input}.${crypto.createHmac('sha256', pem).update(input).digest('base64url')}`
  }
  const privateKey = crypto.createPrivateKey({ key: jwk, format: 'jwk' })
  const pss = { padding: crypto.constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }
  const how = { RS256: { key: privateKey }, PS256: { key: privateKey, ...pss }, ES256: { key: privateKey, dsaEncoding: 'ieee-p1363' }, EdDSA: { key: privateKey } }[jwk.alg]
  const signature = crypto.sign(jwk.alg === 'EdDSA' ? null : 'sha256', Buffer.from(input), how)
  return `${input}.${signature.toString('base64url')}`
}

const control = {
  'GET /control/keys': () => ({ keys: publicKeys() }),
  'GET /control/counts': () => state.counts,
  'POST /control/mint': async body => ({ token: await mint(body) }),
  // {alg?, keep?}: a new key signs from now on; the old ones stay published only with `keep`.
  'POST /control/rotate': async body => {
    alg = body.alg ?? alg
    keys = [await freshKey(alg), ...(body.keep ? keys : [])]
    makeProvider()
    return { keys: publicKeys() }
  },
  // Accounts are added to those that are known; everything else is replaced.
  'POST /control/set': ({ accounts = {}, ...body }) => {
    Object.assign(state.accounts, accounts)
    Object.assign(state, body)
    if (body.clients || 'conform' in body) makeProvider()
    return {}
  }
}

async function read (request) {
  let text = ''
  for await (const piece of request) text += piece
  return text === '' ? {} : JSON.parse(text)
}

function answer (response, status, value) {
  const text = JSON.stringify(value)
  response.writeHead(status, { 'content-type': 'application/json' }).end(text)
}

// Whether the request was answered (or left hanging) by a fault.
function fails (fault, request, response) {
  if (fault === undefined) return false
  if (fault === 'down') request.socket.destroy()
  else if (fault === 'garbage') response.writeHead(200, { 'content-type': 'application/json' }).end('<<< not JSON >>>')
  else if (fault === 'status') response.writeHead(503).end('no')
  else if (fault === 'many') {
    // A hundred thousand keys: more than anybody should read.
    const { kid, ...key } = publicKeys()[0]
    const all = Array.from({ length: 100_000 }, (_, number) => ({ ...key, kid: `k${number}` }))
    answer(response, 200, { keys: all })
  } else if (fault === 'huge') {
    // A body that never ends.
    response.writeHead(200, { 'content-type': 'application/json' })
    const piece = Buffer.alloc(1 << 16, ' ')
    const pump = () => { while (!response.destroyed && response.write(piece)); }
    response.on('drain', pump)
    pump()
  } else if (fault.redirect) response.writeHead(302, { location: fault.redirect }).end()
  // "hang": no answer at all.
  return true
}

const server = http.createServer(async (request, response) => {
  try {
    const path = request.url.split('?')[0]
    const handler = control[`${request.method} ${path}`]
    if (handler) return answer(response, 200, await handler(await read(request)))
    state.counts[path] = (state.counts[path] ?? 0) + 1
    if (fails(state.faults[path] ?? state.faults['*'], request, response)) return
    if (path === '/jwks' && state.maxAge !== undefined) response.setHeader('cache-control', `max-age=${state.maxAge}`)
    provider.callback()(request, response)
  } catch (error) {
    if (!response.headersSent) answer(response, 500, { error: String(error) })
  }
})

server.listen(Number(process.env.PORT || 0), '127.0.0.1', async () => {
  issuer = `http://127.0.0.1:${server.address().port}`
  keys = [await freshKey(alg)]
  makeProvider()
  process.stdout.write(JSON.stringify({ issuer }) + '\n')
})
process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
