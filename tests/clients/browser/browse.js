// A person at a headless Chromium. Reads one JSON document from its standard input and prints one:
//   in:  {pin, steps: [{goto: URL} | {fill: SELECTOR, with: TEXT} | {click: SELECTOR} (which leads to another page) | {wait: TEXT} | {see: NAME} | {forget: true}]}
//   out: {url, title, text, html, status, headers, seen: {NAME: {url, text, html, status, headers}}, cookies, complaints, visited, error?}
// `pin` is the base64 SHA-256 of the public key of the one server without a public certificate that is trusted; the caller
// has checked its certificate. `error` tells which step failed; what the page was then is told all the same.
'use strict'
const { chromium } = require('playwright-core')

async function main () {
  let text = ''
  for await (const piece of process.stdin) text += piece
  const { pin, steps } = JSON.parse(text)
  const args = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync']
  if (pin) args.push(`--ignore-certificate-errors-spki-list=${pin}`)
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', chromiumSandbox: false, args })
  const said = { seen: {}, complaints: [], visited: [] }
  try {
    const context = await browser.newContext()
    // On a loaded machine with two processors a page takes half a minute.
    context.setDefaultTimeout(90000)
    const page = await context.newPage()
    let last = { status: 0, headers: {} }
    page.on('console', message => { if (message.type() === 'error') said.complaints.push(message.text()) })
    page.on('pageerror', error => said.complaints.push(String(error)))
    page.on('response', async response => {
      if (response.request().isNavigationRequest()) {
        said.visited.push(response.url())
        last = { status: response.status(), headers: response.headers() }
      }
    })
    const look = async () => ({
      url: page.url(), title: await page.title(), text: await page.innerText('body'), html: await page.content(), ...last
    })
    try {
      for (const [number, step] of steps.entries()) {
        try {
          if (step.goto) await page.goto(step.goto, { waitUntil: 'load' })
          else if (step.fill) await page.fill(step.fill, step.with)
          else if (step.click) await Promise.all([page.waitForNavigation({ waitUntil: 'load' }), page.click(step.click)])
          else if (step.wait) await page.getByText(step.wait).first().waitFor()
          else if (step.see) said.seen[step.see] = await look()
          else if (step.forget) await context.clearCookies()
          else throw new Error('an unknown step')
        } catch (error) {
          throw new Error(`step ${number} ${JSON.stringify(step)}: ${error.message}`)
        }
      }
    } catch (error) {
      said.error = error.message
    }
    await page.waitForLoadState('load').catch(() => {})
    Object.assign(said, await look().catch(error => ({ url: page.url(), text: '', html: '', title: '', problem: String(error), ...last })))
    said.cookies = await context.cookies()
  } finally {
    await browser.close()
  }
  process.stdout.write(JSON.stringify(said) + '\n')
}

main().catch(error => { console.error(error); process.exit(1) })
