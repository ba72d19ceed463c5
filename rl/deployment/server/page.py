"""The page at /: the specification, a form, and the latency of its requests. It loads nothing from elsewhere."""

from __future__ import annotations

PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>rlserve</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.3rem } pre, textarea, input { font: 13px/1.4 ui-monospace, monospace }
textarea { width: 100%; height: 9rem; box-sizing: border-box } pre { background: #f4f4f4; padding: .7rem; overflow-x: auto }
label { display: block; margin: .6rem 0 .2rem } button { margin: .6rem .6rem 0 0 } .bad { color: #a00 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 } pre { background: #242424 } .bad { color: #f88 } }
</style></head><body>
<h1>rlserve</h1>
<p id="about">...</p>
<label for="token">Token, if the server needs one</label><input id="token" type="password" autocomplete="off">
<label for="request">Request</label><textarea id="request" spellcheck="false"></textarea>
<div><button id="send">Send</button><button id="repeat">Send 100</button><span id="latency"></span></div>
<label>Answer</label><pre id="answer"></pre>
<details><summary>Specification</summary><pre id="spec"></pre></details>
<p><a href="/v1/openapi.json">OpenAPI</a> &middot; <a href="/metrics">metrics</a></p>
<script>
const $ = id => document.getElementById(id)
const headers = () => ($('token').value ? {Authorization: 'Bearer ' + $('token').value} : {})
const filled = (shape, value) => shape.length ? Array.from({length: shape[0]}, () => filled(shape.slice(1), value)) : value
function example(node) {
  if (node.leaf) return filled(node.leaf.shape, node.leaf.start.length ? node.leaf.start[0] : 0)
  if (node.dict) return Object.fromEntries(Object.entries(node.dict).map(([key, child]) => [key, example(child)]))
  return node.tuple.map(example)
}
async function load() {
  const reply = await fetch('/v1/spec', {headers: headers()})
  const body = await reply.json()
  if (!reply.ok) { $('about').textContent = body.error.message; return }
  const [name, policy] = Object.entries(body.policies)[0]
  $('about').textContent = Object.entries(body.policies)
    .map(([name, one]) => `${name}: ${one.algo} on ${one.spec.id}, step ${one.step}`).join('; ')
  $('spec').textContent = JSON.stringify(body, null, 1)
  const spec = policy.spec
  const obs = spec.groups
    ? Object.fromEntries(spec.groups.flatMap(group => group.agents.map(agent => [agent, example(group.obs)])))
    : example(spec.obs)
  $('request').value = JSON.stringify(policy.memory ? {obs, session: 'page', first: true} : {obs})
}
async function ask() {
  const begin = performance.now()
  const reply = await fetch('/v1/act', {method: 'POST', headers: {...headers(), 'Content-Type': 'application/json'},
    body: $('request').value})
  const text = await reply.text()
  const ms = performance.now() - begin
  $('answer').textContent = text
  $('answer').className = reply.ok ? '' : 'bad'
  return ms
}
async function measure(count) {
  const times = []
  for (let i = 0; i < count; i++) times.push(await ask())
  times.sort((a, b) => a - b)
  $('latency').textContent = `p50 ${times[count >> 1].toFixed(2)} ms, max ${times[count - 1].toFixed(2)} ms`
}
$('send').onclick = () => measure(1)
$('repeat').onclick = () => measure(100)
$('token').onchange = load
load()
</script></body></html>
"""
